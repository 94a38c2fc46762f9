// SPDX-License-Identifier: GPL-2.0

//! What a reader is told of a packet, and when it ends.
//!
//! Linear bytes are copied, and a control message tells how many. For a frag there is a control
//! message that tells where in which dma-buf its bytes are, with a [token](crate::sys::token). A reader may take one
//! for all frags of a [run](crate::sys::run), which may go on from packet to packet. A packet,
//! its reader and the reader's tokens are what the caller says they are: nothing here knows of skbs.

#![deny(unsafe_code)]

use crate::sys::{
    run::{
        End,
        Run, //
    },
    token::{
        Frags,
        Tokens,
        Told,
        BATCH,
        RUN_MAX, //
    },
    window::{
        self,
        Window, //
    }, //
};

/// A frag of a packet.
pub(crate) trait Frag {
    /// Size in bytes.
    fn size(&self) -> usize;

    /// Where it is. None if that is not in device memory.
    fn place(&self) -> Option<Place>;

    /// Whether the memory that it is in was taken back.
    fn is_revoked(&self) -> bool;

    /// Where a part of it ends. None if that is not in device memory.
    fn end(&self, part: window::Part) -> Option<End>;

    /// Whether a part of it follows what ends at `end`, which is where this part ends then.
    fn follows(&self, part: window::Part, end: &mut End) -> bool;
}

/// Where a frag is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Id of the binding.
    pub(crate) dmabuf_id: u32,
    /// Where in the dma-buf the frag begins, in bytes.
    pub(crate) offset: u64,
}

/// What a reader is told of a frag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FragInfo {
    /// Id of the binding.
    pub(crate) dmabuf_id: u32,
    /// Where in the dma-buf its bytes begin.
    pub(crate) offset: u64,
    /// How many bytes they are.
    pub(crate) len: usize,
    /// The token for them.
    pub(crate) token: u32,
}

/// A part of a packet: linear bytes, and then frags.
pub(crate) struct Part<'a, F> {
    /// Whether the CPU can read the frags.
    pub(crate) readable: bool,
    /// Whether memory of any frags was ever taken back: then they are asked.
    pub(crate) may_be_revoked: bool,
    /// The linear bytes.
    pub(crate) linear: &'a [u8],
    /// The frags.
    pub(crate) frags: F,
}

/// Who gets data and control messages.
pub(crate) trait Reader {
    /// Why it does not.
    type Error: From<Stop>;

    /// A control message about a frag, as the reader gets it.
    type Message: Copy + Default + From<FragInfo>;

    /// Copies bytes to it.
    fn copy(&mut self, data: &[u8]) -> Result<(), Self::Error>;

    /// Adds a control message about `len` bytes that were copied.
    fn put_linear(&mut self, len: usize) -> Result<(), Self::Error>;

    /// Adds control messages about frags, in their order. If one cannot be added, tells how many were,
    /// and why that one was not.
    fn put_frags(&mut self, messages: &[Self::Message]) -> Result<(), (usize, Self::Error)>;

    /// Whether it takes one message for a run of frags.
    fn takes_runs(&self) -> bool;

    /// The run that the last message was about, if there is one, and that can still be changed.
    fn last_run(&self) -> Option<Run>;

    /// Tells what that is from now on.
    fn set_last_run(&mut self, run: Option<Run>);

    /// Has the last message tell of so many bytes in all.
    fn set_last_len(&mut self, len: u32) -> Result<(), Self::Error>;
}

/// Why nothing more can be passed, if it is not for the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A frag is not in device memory.
    NotDeviceMemory,
    /// A frag is in memory that was taken back.
    Revoked,
    /// The packet ends before the window does.
    EndOfPacket,
}

/// Passes what of a packet is in `window` to `reader`, one part after the other. Returns how many bytes.
///
/// What stopped it is told only if not a byte was passed. The reader has been told of the tokens that
/// stand for something when this returns, and of no others.
pub(crate) fn pass<'a, F, R, T>(
    parts: impl Iterator<Item = Part<'a, F>>,
    window: Window,
    reader: &mut R,
    tokens: &mut T,
) -> Result<usize, R::Error>
where
    F: Frags,
    F::Frag: Frag,
    R: Reader,
    T: Tokens<F, Error = R::Error>,
{
    let mut walk = Walk {
        reader,
        tokens,
        window,
        passed: 0,
    };
    let result = walk.parts(parts);

    match walk.passed {
        0 => result.map(|()| 0),
        passed => Ok(passed),
    }
}

struct Walk<'r, R, T> {
    reader: &'r mut R,
    tokens: &'r mut T,
    window: Window,
    /// How many bytes were passed.
    passed: usize,
}

impl<R: Reader, T> Walk<'_, R, T> {
    fn parts<'a, F>(&mut self, parts: impl Iterator<Item = Part<'a, F>>) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        for part in parts {
            if part.readable {
                return Err(Stop::NotDeviceMemory.into());
            }
            self.linear(part.linear)?;
            self.frags(part.frags, part.may_be_revoked)?;
            if self.window.is_empty() {
                return Ok(());
            }
        }
        Err(Stop::EndOfPacket.into())
    }

    fn linear(&mut self, linear: &[u8]) -> Result<(), R::Error> {
        if let Some(part) = self.window.cut(linear.len()) {
            self.reader.copy(&linear[part.offset..][..part.len])?;
            self.reader.put_linear(part.len)?;
            self.passed += part.len;
        }
        Ok(())
    }

    fn frags<F>(&mut self, frags: F, may_be_revoked: bool) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        if self.reader.takes_runs() {
            return self.runs(frags, may_be_revoked);
        }
        let all = frags.as_slice().len();
        let mut rest = frags.as_slice();

        while let Some(there) = self.next(&mut rest, may_be_revoked)? {
            let mut tokens = [0; BATCH];
            let (told, result) = self.batch::<F>(there, &mut tokens);
            if told == all {
                self.tokens.commit_all(&tokens[..told], frags);
                return result;
            }
            let (told, after) = rest.split_at(told);
            if !told.is_empty() {
                self.tokens.commit(&tokens[..told.len()], told);
            }
            result?;
            rest = after;
        }
        Ok(())
    }

    /// Passes over those of `rest` that are before the window. Returns the others, as long as their memory is there,
    /// or none if there is nothing left to be passed.
    fn next<'f, G: Frag>(
        &mut self,
        rest: &mut &'f [G],
        may_be_revoked: bool,
    ) -> Result<Option<&'f [G]>, R::Error> {
        while let Some((frag, after)) = rest.split_first() {
            if self.window.is_empty() {
                break;
            }
            if self.window.meets(frag.size()) {
                let there = match may_be_revoked {
                    true => still_there(rest),
                    false => rest,
                };
                if there.is_empty() {
                    return Err(Stop::Revoked.into());
                }
                return Ok(Some(there));
            }
            self.window.cut(frag.size());
            *rest = after;
        }
        Ok(None)
    }

    /// Tells the reader of the first of `frags`, which are in the window, with tokens that are still to be
    /// committed. Returns how many frags that was, and why not more.
    fn batch<F>(
        &mut self,
        frags: &[F::Frag],
        tokens: &mut [u32; BATCH],
    ) -> (usize, Result<(), R::Error>)
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let most = match self.tokens.peek(&mut tokens[..frags.len().min(BATCH)]) {
            Ok(most) => most.get(),
            Err(error) => return (0, Err(error)),
        };
        let mut messages = [R::Message::default(); BATCH];
        let start = self.window;
        let (count, found) = self.describe(frags, &tokens[..most], &mut messages);
        let (told, put) = match self.reader.put_frags(&messages[..count]) {
            Ok(()) => (count, Ok(())),
            Err((told, error)) => (told, Err(error)),
        };

        self.passed += match told == count {
            true => start.len() - self.window.len(),
            false => bytes(start, &frags[..told]),
        };
        (told, put.and(found))
    }

    /// Makes messages about the first of `frags`, as long as they are in the window. Returns how many,
    /// and whether the next one is not to be told of.
    fn describe<F: Frag>(
        &mut self,
        frags: &[F],
        tokens: &[u32],
        messages: &mut [R::Message],
    ) -> (usize, Result<(), R::Error>) {
        let mut count = 0;

        for ((frag, &token), message) in frags.iter().zip(tokens).zip(messages) {
            if !self.window.meets(frag.size()) {
                break;
            }
            let Some(place) = frag.place() else {
                return (count, Err(Stop::NotDeviceMemory.into()));
            };
            if let Some(part) = self.window.cut(frag.size()) {
                *message = R::Message::from(FragInfo {
                    dmabuf_id: place.dmabuf_id,
                    offset: place.offset + part.offset as u64,
                    len: part.len,
                    token,
                });
            }
            count += 1;
        }
        (count, Ok(()))
    }
}

/// What a reader was told of a part of a packet: runs of frags, one after the other.
#[derive(Default)]
struct Runs {
    told: [Told; BATCH],
    len: usize,
}

impl Runs {
    /// Adds one. There is one frag at least for each.
    fn push(&mut self, told: Told) {
        if let Some(place) = self.told.get_mut(self.len) {
            *place = told;
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[Told] {
        &self.told[..self.len]
    }

    /// How many frags they have.
    fn frags(&self) -> usize {
        self.as_slice().iter().map(|told| told.frags).sum()
    }
}

impl<R: Reader, T> Walk<'_, R, T> {
    /// As [`Self::frags`], for a reader who takes runs.
    fn runs<F>(&mut self, frags: F, may_be_revoked: bool) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let all = frags.as_slice().len();
        let mut rest = frags.as_slice();

        while let Some(there) = self.next(&mut rest, may_be_revoked)? {
            let mut runs = Runs::default();
            let result = self.run_batch::<F>(&there[..there.len().min(BATCH)], &mut runs);
            let told = runs.frags();
            if told == all {
                self.tokens.commit_all_runs(runs.as_slice(), frags);
                return result;
            }
            let (told, after) = rest.split_at(told);
            if !told.is_empty() {
                self.tokens.commit_runs(runs.as_slice(), told);
            }
            result?;
            rest = after;
        }
        Ok(())
    }

    /// Tells the reader of the first of `frags`, which are in the window: of those that follow what it was told of
    /// last, by changing that message, and then of others.
    fn run_batch<F>(&mut self, frags: &[F::Frag], runs: &mut Runs) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let count = match self.reader.last_run() {
            Some(run) => self.go_on::<F>(run, frags)?,
            None => 0,
        };
        if let (Some(run), true) = (self.reader.last_run(), count != 0) {
            runs.push(Told {
                token: run.token,
                frags: count,
                goes_on: true,
            });
        }

        match &frags[count..] {
            [next, ..] if self.window.meets(next.size()) => {
                self.new_runs::<F>(&frags[count..], runs)
            }
            _ => Ok(()),
        }
    }

    /// Adds those of `frags` to `run`, the last one that the reader was told of, which follow it. Returns how many.
    fn go_on<F>(&mut self, run: Run, frags: &[F::Frag]) -> Result<usize, R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let most = RUN_MAX.saturating_sub(run.count) as usize;
        let mut following = Following::of(run.end, self.window, frags, most);
        if following.count == 0 {
            return Ok(0);
        }
        let room = self.tokens.room(&run);
        if room < following.count {
            following = Following::of(run.end, self.window, frags, room);
        }
        if following.count == 0 {
            return Ok(0);
        }

        let bytes = self.window.len() - following.window.len();
        // CAST: A call is for no more than `MAX_RW_COUNT` bytes.
        let len = run.len + bytes as u32;
        self.reader.set_last_len(len)?;
        self.window = following.window;
        self.passed += bytes;
        self.reader.set_last_run(Some(Run {
            // CAST: No more than `RUN_MAX`.
            count: run.count + following.count as u32,
            len,
            end: following.end,
            ..run
        }));
        Ok(following.count)
    }

    /// Tells the reader of the first of `frags`, which are in the window, by new messages.
    fn new_runs<F>(&mut self, frags: &[F::Frag], runs: &mut Runs) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let (start, before) = (self.window, (runs.len, runs.frags()));
        // What goes on is not committed yet. If another thread has returned it meanwhile, its token is free, and
        // not for these.
        let going_on = runs.as_slice().first().map(|told| told.token);
        let wanted = count_runs(frags, self.window) + usize::from(going_on.is_some());
        let mut tokens = [0; BATCH];
        let (free, room) = self
            .tokens
            .peek_for_runs(&mut tokens[..wanted.min(BATCH)])?;
        let most = room.saturating_sub(before.1).min(frags.len());
        let tokens = tokens[..free.get()]
            .iter()
            .filter(|&&token| Some(token) != going_on);
        let mut messages = [R::Message::default(); BATCH];
        let mut rest = &frags[..most];
        let mut last = None;
        let mut found = Ok(());

        for (&token, message) in tokens.zip(&mut messages) {
            let mut window = self.window;
            let Some((first, others)) = rest.split_first() else {
                break;
            };
            let Some(part) = window.cut(first.size()) else {
                break;
            };
            let (Some(place), Some(end)) = (first.place(), first.end(part)) else {
                found = Err(Stop::NotDeviceMemory.into());
                break;
            };

            let following = Following::of(end, window, others, RUN_MAX as usize - 1);
            let len = self.window.len() - following.window.len();
            *message = R::Message::from(FragInfo {
                dmabuf_id: place.dmabuf_id,
                offset: place.offset + part.offset as u64,
                len,
                token,
            });
            // CAST: No more than `RUN_MAX`, and a call is for no more than `MAX_RW_COUNT` bytes.
            last = Some(Run {
                token,
                count: following.count as u32 + 1,
                len: len as u32,
                end: following.end,
            });
            runs.push(Told {
                token,
                frags: following.count + 1,
                goes_on: false,
            });
            self.window = following.window;
            rest = &others[following.count..];
        }

        match self.reader.put_frags(&messages[..runs.len - before.0]) {
            Ok(()) => self.passed += start.len() - self.window.len(),
            Err((told, error)) => {
                runs.len = before.0 + told;
                self.passed += bytes(start, &frags[..runs.frags() - before.1]);
                last = None;
                found = Err(error);
            }
        }
        self.reader.set_last_run(last);
        found
    }
}

/// How many runs there are in what of `frags` is in the window, if none of them is too long.
fn count_runs<F: Frag>(frags: &[F], mut window: Window) -> usize {
    let mut rest = frags;
    let mut count = 0;

    while let Some((first, others)) = rest.split_first() {
        let Some(part) = window.cut(first.size()) else {
            break;
        };
        count += 1;
        let Some(end) = first.end(part) else { break };
        let following = Following::of(end, window, others, others.len());
        window = following.window;
        rest = &others[following.count..];
    }
    count
}

/// Frags that follow something.
struct Following {
    /// How many.
    count: usize,
    /// Where they end.
    end: End,
    /// What is left of the window after them.
    window: Window,
}

impl Following {
    /// The first of `frags`, up to `most`, that follow what ends at `end`, and are in `window`.
    fn of<F: Frag>(mut end: End, mut window: Window, frags: &[F], most: usize) -> Self {
        let mut count = 0;

        for frag in frags.iter().take(most) {
            let mut next = window;
            match next.cut(frag.size()) {
                Some(part) if frag.follows(part, &mut end) => window = next,
                _ => break,
            }
            count += 1;
        }
        Self { count, end, window }
    }
}

/// Those before the first one whose memory was taken back. A packet may have frags of several bindings.
#[cold]
fn still_there<F: Frag>(frags: &[F]) -> &[F] {
    let gone = frags.iter().position(Frag::is_revoked);

    &frags[..gone.unwrap_or(frags.len())]
}

/// How many bytes of `frags` are in `window`.
fn bytes<F: Frag>(mut window: Window, frags: &[F]) -> usize {
    frags
        .iter()
        .filter_map(|frag| window.cut(frag.size()))
        .map(|part| part.len)
        .sum()
}
