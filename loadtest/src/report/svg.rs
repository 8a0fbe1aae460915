//! The report as a picture: for each step, requests/s as bars and latency as a row of marks on a logarithmic scale.

use super::{ContenderReport, Report, StepReport};

const WIDTH: f64 = 900.0;
const NAME_WIDTH: f64 = 110.0;
const BARS: (f64, f64) = (NAME_WIDTH, 380.0);
const MARKS: (f64, f64) = (580.0, 860.0);
const ROW_HEIGHT: f64 = 20.0;
const HEAD_HEIGHT: f64 = 44.0;
const MARGIN: f64 = 12.0;
const COLOURS: [(&str, &str); 3] = [("echo", "#8a8f98"), ("redis-get", "#c2833b"), ("outrigger", "#2b6cb0")];
const OTHER_COLOUR: &str = "#5a8f5a";

/// The whole picture.
pub(crate) fn render(report: &Report) -> String {
    let heights: f64 = report.steps.iter().map(height).sum();
    let total = heights + 2.0 * MARGIN + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total:.0}\" width=\"{WIDTH}\" height=\"{total:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let machine = &report.machine;
    let title = format!(
        "{} connections on {} CPUs ({}). Bars: requests/s, median of the rounds. Marks: latency P50, P95, P99, P99.9.",
        report.connections, machine.cpus, machine.cpu_model
    );
    text(&mut svg, MARGIN, MARGIN + 12.0, "start", "#444", &title);
    let mut top = MARGIN + 34.0;
    for step in &report.steps {
        panel(&mut svg, step, top);
        top += height(step);
    }
    svg.push_str("</svg>\n");
    svg
}

fn height(step: &StepReport) -> f64 {
    HEAD_HEIGHT + ROW_HEIGHT * step.contenders.len() as f64 + 18.0
}

fn panel(svg: &mut String, step: &StepReport, top: f64) {
    text(svg, MARGIN, top + 12.0, "start", "#000", &step.label);
    let most = step.contenders.iter().map(|row| row.requests_per_s.median).fold(1.0, f64::max);
    let latencies = step.contenders.iter().flat_map(marks).filter(|milliseconds| *milliseconds > 0.0);
    let (low, high) = latencies.fold((f64::INFINITY, 0.0_f64), |(low, high), at| (low.min(at), high.max(at)));
    let scale = LogScale::around(low, high);
    for decade in scale.decades() {
        let x = scale.x(decade);
        line(svg, (x, top + 20.0), (x, top + height(step) - 16.0), "#ddd", 1.0);
        text(svg, x, top + 30.0, "middle", "#777", &format!("{decade} ms"));
    }
    for (place, row) in step.contenders.iter().enumerate() {
        let y = top + HEAD_HEIGHT + ROW_HEIGHT * place as f64;
        let colour = colour(&row.name);
        text(svg, NAME_WIDTH - 8.0, y + 4.0, "end", "#000", &row.name);
        let length = (BARS.1 - BARS.0) * row.requests_per_s.median / most;
        svg.push_str(&format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"12\" fill=\"{colour}\"/>\n",
            BARS.0,
            y - 6.0
        ));
        text(svg, BARS.0 + length + 6.0, y + 4.0, "start", "#000", &bar_label(step, row));
        latency_marks(svg, &scale, row, y, colour);
    }
}

fn bar_label(step: &StepReport, row: &ContenderReport) -> String {
    let rate = format!("{:.1}k/s", row.requests_per_s.median / 1e3);
    let ratio = row
        .ratios
        .get(step.compared_with)
        .filter(|_| row.name != step.compared_with && step.rate_per_s.is_none());
    ratio.map_or(rate.clone(), |ratio| format!("{rate}, {:.2} of {}", ratio.median, step.compared_with))
}

fn latency_marks(svg: &mut String, scale: &LogScale, row: &ContenderReport, y: f64, colour: &str) {
    let places = marks(row).map(|milliseconds| scale.x(milliseconds));
    line(svg, (places[0], y), (places[3], y), colour, 2.0);
    for (x, radius) in places.into_iter().zip([5.0, 4.0, 3.0, 2.5]) {
        svg.push_str(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>\n"));
    }
}

fn marks(row: &ContenderReport) -> [f64; 4] {
    let latency = &row.latency_ms;
    [latency.p50, latency.p95, latency.p99, latency.p99_9]
}

fn colour(name: &str) -> &'static str {
    COLOURS.iter().find(|(known, _)| *known == name).map_or(OTHER_COLOUR, |(_, colour)| colour)
}

/// Milliseconds to the right-hand side, whole decades.
struct LogScale {
    from: i32,
    to: i32,
}

impl LogScale {
    fn around(low: f64, high: f64) -> Self {
        if !low.is_finite() || high <= 0.0 {
            return Self { from: -1, to: 1 };
        }
        let from = low.log10().floor() as i32;
        Self { from, to: (high.log10().ceil() as i32).max(from + 1) }
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        (self.from..=self.to).map(|exponent| 10_f64.powi(exponent))
    }

    fn x(&self, milliseconds: f64) -> f64 {
        let share = (milliseconds.max(1e-9).log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        MARKS.0 + (MARKS.1 - MARKS.0) * share.clamp(0.0, 1.0)
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    svg.push_str(&format!("<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n",
        from.0, from.1, to.0, to.1));
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    svg.push_str(&format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>\n",
        escape(words)
    ));
}

/// Text that is safe between tags and in attributes.
fn escape(words: &str) -> String {
    let mut safe = String::with_capacity(words.len());
    for letter in words.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            control if control.is_control() => safe.push(' '),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        assert_eq!(escape("<a href=\"x\">&\u{1b}"), "&lt;a href=&quot;x&quot;&gt;&amp; ");
    }

    #[test]
    fn the_scale_covers_whole_decades() {
        let scale = LogScale::around(0.4, 25.0);
        assert_eq!((scale.from, scale.to), (-1, 2));
        assert_eq!(scale.x(0.1), MARKS.0);
        assert_eq!(scale.x(100.0), MARKS.1);
        assert_eq!(scale.x(0.0), MARKS.0);
        assert_eq!(LogScale::around(1.0, 1.0).to, 1);
    }
}
