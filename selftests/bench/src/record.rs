// SPDX-License-Identifier: GPL-2.0

//! What was measured, as lines of JSON.

use std::io;
use std::io::Write;

use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::clock::Unit;

/// The parameters of a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Case(Map<String, Value>);

impl Case {
    /// A case without parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }
}

/// One quantity of one subject in one case: a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Record {
    series: String,
    case: Case,
    subject: String,
    unit: String,
    per: String,
    /// One for each round.
    values: Vec<f64>,
}

/// Everything measured so far.
#[derive(Debug)]
pub struct Samples {
    series: &'static str,
    records: Vec<Record>,
}

impl Samples {
    /// Nothing yet, of this series.
    pub fn new(series: &'static str) -> Self {
        Self {
            series,
            records: Vec::new(),
        }
    }

    /// Adds a value. Those of the same case, subject, unit and kind are the rounds of one quantity.
    pub fn add(&mut self, case: &Case, subject: &str, unit: &str, per: &str, value: f64) {
        let same = |record: &&mut Record| {
            (&record.case, &*record.subject, &*record.unit, &*record.per)
                == (case, subject, unit, per)
        };
        match self.records.iter_mut().find(same) {
            Some(record) => record.values.push(value),
            None => self.records.push(Record {
                series: self.series.into(),
                case: case.clone(),
                subject: subject.into(),
                unit: unit.into(),
                per: per.into(),
                values: vec![value],
            }),
        }
    }

    /// Adds what a clock counted for `count` things.
    pub fn add_cost(
        &mut self,
        case: &Case,
        subject: &str,
        unit: Unit,
        per: &str,
        cost: u64,
        count: f64,
    ) {
        self.add(case, subject, unit.name(), per, cost as f64 / count);
    }

    /// Prints it, a line for each quantity.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for record in &self.records {
            serde_json::to_writer(&mut out, record)?;
            writeln!(out)?;
        }
        out.flush()
    }
}

/// The middle one of some values, of which there has to be one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
