//! Figures for people.

/// The middle one; of an even number, the lower of the two.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// A Markdown table, printed as its rows come.
pub struct Table(usize);

impl Table {
    pub fn new(title: &str, columns: &[&str]) -> Self {
        line(&format!("\n### {title}\n"));
        line(&format!("| {} |", columns.join(" | ")));
        line(&format!("| {} |", vec!["---"; columns.len()].join(" | ")));
        Self(columns.len())
    }

    pub fn row(&self, cells: &[String]) {
        assert_eq!(cells.len(), self.0, "a cell for each column");
        line(&format!("| {} |", cells.join(" | ")));
    }
}

/// A figure with three digits that count.
pub fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
pub fn line(text: &str) {
    println!("{text}");
}
