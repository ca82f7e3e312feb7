//! Figures by router and measure, as a table.
use crate::routers::REFERENCE;
use std::fmt;

/// What one round found, in order: measure, unit, figure.
#[derive(Default)]
pub(crate) struct Found(Vec<(&'static str, &'static str, f64)>);

impl Found {
    pub(crate) fn add(&mut self, measure: &'static str, unit: &'static str, figure: f64) {
        self.0.push((measure, unit, figure));
    }
}

/// What all rounds found.
pub(crate) struct Report {
    prefixes: u32,
    rounds: u32,
    found: Vec<(&'static str, Vec<Found>)>,
}

impl Report {
    pub(crate) fn new(prefixes: u32, rounds: u32) -> Self {
        Report { prefixes, rounds, found: Vec::new() }
    }

    pub(crate) fn add(&mut self, router: &'static str, found: Found) {
        match self.found.iter_mut().find(|(name, _)| *name == router) {
            Some((_, rounds)) => rounds.push(found),
            None => self.found.push((router, vec![found])),
        }
    }

    /// The figures of a measure, the smallest first.
    fn figures(&self, router: &str, measure: &str) -> Vec<f64> {
        let rounds = self.found.iter().filter(|(name, _)| *name == router).flat_map(|(_, rounds)| rounds);
        let of =
            |found: &Found| found.0.iter().find(|(name, ..)| *name == measure).map(|(.., figure)| *figure);
        let mut figures: Vec<f64> = rounds.filter_map(of).collect();
        figures.sort_by(f64::total_cmp);
        figures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} IPv4 prefixes with the same attributes; minimum / median of {} rounds (the median × that of {REFERENCE})",
            self.prefixes, self.rounds
        )?;
        write!(f, "{:46}", "")?;
        for (router, _) in &self.found {
            write!(f, "{router:>28}")?;
        }
        writeln!(f)?;
        let measures = self.found.first().and_then(|(_, rounds)| rounds.first());
        for &(measure, unit, _) in measures.iter().flat_map(|found| &found.0) {
            write!(f, "{:46}", format!("{measure} {unit}"))?;
            let reference = median(&self.figures(REFERENCE, measure));
            for (router, _) in &self.found {
                let figures = self.figures(router, measure);
                let middle = median(&figures);
                let least = figures.first().copied().unwrap_or(f64::NAN);
                write!(
                    f,
                    "{:>28}",
                    format!("{} / {} ({:.2})", short(least), short(middle), middle / reference)
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Three digits that count.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0..100.0 => format!("{figure:.1}"),
        1.0..10.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
