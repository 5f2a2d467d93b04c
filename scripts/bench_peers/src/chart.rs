//! The figures as bars: one panel for each kind of work, each with a scale of its own that begins at zero.

use std::fmt::Write;

use crate::report::name;
use crate::results::{FIGURES, Figure, Results, Unit};
use crate::systems::{Class, SYSTEMS, System};

const WIDTH: f64 = 1000.0;
const PANEL: f64 = 490.0;
const LABELS: f64 = 206.0;
/// Room behind the longest bar for its figure.
const FIGURE_ROOM: f64 = 75.0;
const ROW: f64 = 19.0;
const HEAD: f64 = 64.0;
const TITLE: f64 = 40.0;
const FOOT: f64 = 26.0;

/// Colours of its own for light and dark, and its own ground: readable wherever it is shown.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600;font-size:14px}.h{font-weight:700;font-size:17px}\
.q{fill:#59636e}.m{font-weight:700}.g{fill:#ffffff;stroke:#d1d9e0}.a{stroke:#d1d9e0}\
.meshd{fill:#0969da}.encrypted{fill:#8250df}.plain{fill:#bc6c00}.floor{fill:#8c959f}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.q{fill:#9198a1}.g{fill:#0d1117;stroke:#3d444d}.a{stroke:#3d444d}\
.meshd{fill:#4493f8}.encrypted{fill:#ab7df8}.plain{fill:#db8a1d}.floor{fill:#6e7681}}";

const PANELS: [usize; 6] = [0, 4, 7, 8, 2, 3];

pub fn draw(results: &Results) -> String {
    let panels: Vec<(&Figure, Vec<Bar>)> = PANELS
        .iter()
        .map(|index| (&FIGURES[*index], bars(results, &FIGURES[*index])))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let mut body = String::new();
    let mut top = HEAD;
    for pair in panels.chunks(2) {
        let height = pair.iter().map(|(_, bars)| TITLE + bars.len() as f64 * ROW + FOOT).fold(0.0, f64::max);
        for (column, (figure, bars)) in pair.iter().enumerate() {
            panel(&mut body, figure, bars, 10.0 + column as f64 * PANEL, top);
        }
        top += height;
    }
    let facts = &results.facts;
    let machine =
        escaped(&format!("{}, {} cores, {}; loopback, delivered messages", facts.cpu, facts.cores, facts.date));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" role=\"img\" \
         aria-label=\"meshd beside other systems\"><style>{STYLE}</style>\n\
         <rect class=\"g\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n\
         <text class=\"h\" x=\"14\" y=\"26\">meshd beside other systems</text>\n\
         <text class=\"q\" x=\"14\" y=\"46\">{machine}</text>\n",
        WIDTH - 1.0,
        top - 1.0,
    );
    let legend = [("meshd", "meshd"), ("encrypted", "encrypted"), ("plain", "plaintext"), ("floor", "bare transport")];
    for (index, (class, words)) in legend.iter().enumerate() {
        let x = 590.0 + index as f64 * 98.0;
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"16\" width=\"11\" height=\"11\" rx=\"2\"/><text x=\"{}\" y=\"26\">{words}</text>",
            x + 16.0
        );
    }
    text + &body + "</svg>\n"
}

struct Bar {
    name: String,
    class: Class,
    value: f64,
    lossy: bool,
}

/// The best on top.
fn bars(results: &Results, figure: &Figure) -> Vec<Bar> {
    let bar = |system: &System| {
        let spread = results.figure(figure, system.word)?;
        let name =
            name(results, Some(figure.work), system).replace(" (TCP, Noise, yamux)", "").replace(", plaintext", "");
        Some(Bar { name, class: system.class, value: spread.median, lossy: spread.lost > 0 })
    };
    let mut bars: Vec<Bar> = SYSTEMS.iter().filter_map(bar).collect();
    bars.sort_by(|one, other| {
        let order = other.value.total_cmp(&one.value);
        if figure.unit == Unit::Microseconds { order.reverse() } else { order }
    });
    bars
}

fn panel(text: &mut String, figure: &Figure, bars: &[Bar], left: f64, top: f64) {
    let (unit, scale) = match figure.unit {
        Unit::PerSecond if figure.key == "calls" => ("thousand calls/s", 1e3),
        Unit::PerSecond if bars.iter().any(|bar| bar.value >= 1e6) => ("million messages/s", 1e6),
        Unit::PerSecond => ("thousand messages/s", 1e3),
        Unit::BytesPerSecond => ("GB/s", 1e9),
        Unit::Microseconds => ("microseconds, less is better", 1.0),
    };
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max) / scale;
    let step = step(most);
    let axis = left + LABELS;
    let pixels = (PANEL - LABELS - FIGURE_ROOM) / most;
    let bottom = top + TITLE + bars.len() as f64 * ROW;
    let _ = writeln!(
        text,
        "<text class=\"t\" x=\"{}\" y=\"{}\">{}</text><text class=\"q\" x=\"{axis:.1}\" y=\"{}\">{unit}</text>",
        left + 4.0,
        top + 16.0,
        escaped(figure.title),
        top + 33.0,
    );
    for tick in 0..=((most / step) as usize) {
        let x = axis + tick as f64 * step * pixels;
        let label = format!("{:.*}", usize::from(step < 1.0), tick as f64 * step);
        let _ = writeln!(
            text,
            "<line class=\"a\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\"/>\
             <text class=\"q\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{label}</text>",
            top + TITLE - 2.0,
            bottom + 14.0,
        );
    }
    for (index, bar) in bars.iter().enumerate() {
        let y = top + TITLE + index as f64 * ROW;
        let (class, weight) = match bar.class {
            Class::Meshd => ("meshd", " class=\"m\""),
            Class::Encrypted => ("encrypted", ""),
            Class::Plain => ("plain", ""),
            Class::Floor => ("floor", ""),
        };
        let length = (bar.value / scale * pixels).max(1.0);
        let _ = writeln!(
            text,
            "<text{weight} text-anchor=\"end\" x=\"{}\" y=\"{}\">{}</text>\
             <rect class=\"{class}\" x=\"{axis:.1}\" y=\"{}\" width=\"{length:.1}\" height=\"13\" rx=\"2\"/>\
             <text{weight} x=\"{:.1}\" y=\"{}\">{}{}</text>",
            axis - 7.0,
            y + 13.0,
            escaped(&bar.name),
            y + 2.5,
            axis + length + 5.0,
            y + 13.0,
            figure.unit.show(bar.value),
            if bar.lossy { " (lossy)" } else { "" },
        );
    }
}

/// One, two or five times a power of ten, so that there are three to six of them.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 3.0).log10().floor());
    let times = [5.0, 2.0, 1.0].into_iter().find(|times| times * power <= most / 3.0).unwrap_or(1.0);
    times * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
