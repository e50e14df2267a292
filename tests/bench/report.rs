//! What the terminal shows: tables of figures with goals and ratios.

/// A table of figures.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    rows: Vec<[String; 4]>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        let head = ["", "measured", "goal", "measured / goal"].map(str::to_owned);
        Self { title: title.into(), rows: vec![head] }
    }

    /// A figure without a goal.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str) {
        self.text(what, &written(value, unit));
    }

    /// A figure that should be at most `goal`.
    pub(crate) fn goal(&mut self, what: &str, value: f64, goal: f64, unit: &str) {
        let ratio = if goal > 0.0 { format!("{:.2}", value / goal) } else { String::new() };
        self.rows.push([what.to_owned(), written(value, unit), format!("<= {}", written(goal, unit)), ratio]);
    }

    /// Something in words.
    pub(crate) fn text(&mut self, what: &str, value: &str) {
        self.rows.push([what.to_owned(), value.to_owned(), String::new(), String::new()]);
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        line(&format!("\n{}", self.title));
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 4] = std::array::from_fn(width);
        for [what, value, goal, ratio] in &self.rows {
            let text = format!(
                "  {what:<0$}  {value:>1$}  {goal:>2$}  {ratio:>3$}",
                widths[0], widths[1], widths[2], widths[3]
            );
            line(text.trim_end());
        }
    }
}

/// `value` with as many digits as mean something.
fn written(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        size if size >= 1_000.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    // Counts are whole.
    let digits = if unit.is_empty() && value.fract().abs() < f64::EPSILON { 0 } else { digits };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Prints one line.
#[expect(clippy::print_stdout, reason = "the bench's purpose is to print what it measured")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}
