// SPDX-License-Identifier: GPL-2.0

//! Receivers and senders on tokio, and what becomes of futures that are dropped.

use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Frag;
use devmem::Piece;
use devmem::TokenBatch;
use devmem::tokio::Receiver;
use devmem::tokio::Sender;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::COMPLETED;
use crate::LONG;
use crate::PORT;
use crate::QUEUE;
use crate::SHORT;
use crate::compared;
use crate::filled_source;
use crate::more_than_fits;

/// As short as timers are.
const TICK: Duration = Duration::from_millis(1);

fn run<T>(future: impl Future<Output = T>) -> io::Result<T> {
    Ok(Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future))
}

/// The first pieces of a stream.
async fn pieces(stream: Arc<TcpStream>, len: u64) -> io::Result<Vec<Frag<'static>>> {
    let mut rx = Receiver::new(stream)?;
    let (mut frags, mut got) = (Vec::new(), 0);
    while got < len {
        let received = rx.recv().await?;
        assert!(!received.is_eof(), "the stream ended at {got}");
        got += received.total() as u64;
        for piece in received {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            frags.push(frag);
        }
    }
    assert_eq!(got, len, "more than what was sent");
    Ok(frags)
}

/// In a task each, on sockets of tokio's own.
pub fn two_connections_in_one_thread() -> Outcome {
    const LEN: u64 = 1 << 20;
    let bench = Receiving::new()?;
    let other = bench.pair.connect_to_queue(Ip::V4, PORT + 1, QUEUE)?;
    let connections = [&bench.connection, &other];
    thread::scope(|scope| -> Outcome {
        let senders =
            connections.map(|c| traffic::send_in(scope, &c.tx, 0, LEN, LEN as usize / 16));
        let streams = run(async {
            let mut tasks = Vec::new();
            for connection in connections {
                let stream = connection.rx.try_clone()?;
                stream.set_nonblocking(true)?;
                let stream = Arc::new(TcpStream::from_std(stream)?);
                tasks.push(tokio::spawn(pieces(stream, LEN)));
            }
            let mut streams = Vec::new();
            for task in tasks {
                streams.push(task.await.expect("the task")?);
            }
            Ok::<_, io::Error>(streams)
        })??;
        for sender in senders {
            sender.join().expect("the sender's thread")?;
        }
        let cpu = bench.map.begin_read()?;
        for frags in streams {
            let mut at = 0;
            for frag in frags {
                let mut got = vec![0; frag.size as usize];
                cpu.copy_out(frag.offset, &mut got)?;
                traffic::compare(at, &got);
                at += u64::from(frag.size);
            }
        }
        Ok(())
    })
}

/// Polls once, and drops what is not ready then: whether it was not.
fn drops<F: Future>(future: F) -> bool {
    pin!(future)
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
}

/// Before each part comes, and now and then while it does.
pub fn a_receive_that_is_dropped_loses_nothing() -> Outcome {
    const PART: usize = 5000;
    const PARTS: u64 = 40;
    const LEN: u64 = PART as u64 * PARTS;
    let bench = Receiving::new()?;
    thread::scope(|scope| -> Outcome {
        let (go, next) = mpsc::channel();
        let tx = &bench.connection.tx;
        let sender = scope.spawn(move || -> io::Result<()> {
            for (i, ()) in (0..PARTS).zip(next) {
                thread::sleep(4 * TICK);
                traffic::send(tx, i * PART as u64, PART as u64, PART)?;
            }
            Ok(())
        });
        run(async {
            let mut rx = Receiver::new(&bench.connection.rx)?;
            let mut done = TokenBatch::new(&bench.connection.rx);
            let (start, mut at, mut asked, mut frags) = (Instant::now(), 0, 0, 0);
            while at < LEN {
                if at == asked * PART as u64 {
                    assert!(drops(rx.recv()), "{at} bytes were sent");
                    // It goes away only when it has failed, which it tells.
                    let _ = go.send(());
                    asked += 1;
                }
                let Ok(received) = timeout(TICK, rx.recv()).await else {
                    assert!(wait::may_take(start.elapsed(), LONG), "at {at}");
                    continue;
                };
                let received = received?;
                assert!(!received.is_eof(), "the stream ended at {at}");
                for frag in compared(&bench, received, at)? {
                    at += u64::from(frag.size);
                    frags += 1;
                    done.push(frag.token)?;
                }
            }
            done.flush()?;
            assert_eq!((at, done.returned()), (LEN, frags));
            Ok::<_, io::Error>(())
        })??;
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}

/// Whether it was polled or not; until all is sent, each byte once, and the source comes back once.
pub fn a_send_that_is_dropped_goes_on() -> Outcome {
    let (_pair, _memory, binding, connection) = filled_source()?;
    let parts = more_than_fits();
    let all = tx::total(&parts);
    thread::scope(|scope| {
        run(async {
            let mut tx = Sender::new(&connection.tx)?;
            drop(tx.send(&binding, parts.clone()));
            let rest = tx.rest().expect("what was not sent");
            assert_eq!(rest.bytes(), all);
            let back = tx.wait().await?.expect("the source");
            assert_eq!((back.bytes, &back.source), (0, &parts));
            let err = tx.resume(&binding, rest).await.expect_err("given back");
            assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput, "{err}");

            let early = timeout(SHORT, tx.send(&binding, parts.clone())).await;
            assert!(early.is_err(), "the peer has not read: {early:?}");
            // Nothing gets in between.
            let err = tx.send(&binding, vec![extent(0, 1)]).await;
            let err = err.expect_err("there is a rest");
            assert_eq!(err.error.kind(), io::ErrorKind::ResourceBusy, "{err}");
            assert!(err.source.is_some());

            let mut rest = tx.rest();
            let reader = scope.spawn(|| tx::expect(&connection.rx, &parts));
            let start = Instant::now();
            let mut left = all;
            while let Some(now) = rest {
                assert!(now.bytes() <= left, "{now:?}");
                left = now.bytes();
                assert!(wait::may_take(start.elapsed(), LONG), "{now:?}");
                rest = match timeout(TICK, tx.resume(&binding, now)).await {
                    Ok(sent) => sent.map(|()| None)?,
                    Err(_) => Some(tx.rest().expect("what is left")),
                };
            }
            let back = loop {
                assert!(wait::may_take(start.elapsed(), COMPLETED + LONG));
                if let Ok(back) = timeout(TICK, tx.wait()).await {
                    break back?.expect("the source");
                }
            };
            assert_eq!((back.bytes, back.source), (all, parts.clone()));
            assert_eq!(tx.wait().await?, None);
            reader.join().expect("the reader's thread")?;
            Ok(())
        })?
    })
}

/// And nobody else: not the receiver of the same socket.
pub fn completions_wake_who_waits() -> Outcome {
    let (pair, _memory, binding, connection) = filled_source()?;
    let part = extent(0, 10_000);
    thread::scope(|scope| {
        run(async {
            let mut rx = Receiver::new(&connection.tx)?;
            let mut tx = Sender::new(&connection.tx)?;
            pair.rx.cut()?;
            tx.send(&binding, part).await?;
            let early = timeout(SHORT, tx.wait()).await;
            assert!(early.is_err(), "nothing was acknowledged: {early:?}");
            let mend = scope.spawn(|| {
                thread::sleep(SHORT);
                pair.rx.mend()
            });
            let back = {
                let mut wait = pin!(timeout(wait::patience(COMPLETED), tx.wait()));
                let mut recv = pin!(rx.recv());
                poll_fn(|cx| match recv.as_mut().poll(cx) {
                    Poll::Pending => wait.as_mut().poll(cx),
                    Poll::Ready(received) => panic!("there is nothing to read: {received:?}"),
                })
                .await
            };
            let back = back.expect("a completion")?;
            assert_eq!(back.map(|sent| sent.source), Some(part));
            mend.join().expect("the other thread")?;

            pair.rx.cut()?;
            tx.send(&binding, part).await?;
            tx.abort()?;
            let back = timeout(wait::patience(COMPLETED), tx.wait()).await;
            let back = back.expect("what was aborted")?;
            assert_eq!(back.map(|sent| sent.source), Some(part));
            Ok(())
        })?
    })
}
