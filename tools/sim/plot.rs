//! Draws the congestion window by time, one curve per algorithm, as SVG.

use crate::cc::{self, Bottleneck, Sample};
use anyhow::{Result, anyhow};
use core::time::Duration;
use netinet::cc::CC_AVAILABLE;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// What all algorithms are put through: 20 Mbit/s, 80 ms, a queue of half the path's product (138 frames).
const SCENARIO: Bottleneck = Bottleneck {
    rate: 20_000_000,
    queue: 69,
    mark_above: 23,
    rtt: Duration::from_millis(80),
    time: Duration::from_secs(60),
};
/// Colours that the colour-blind can tell apart too, in the order of `CC_AVAILABLE`.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const FONT: &str = "sans-serif";

/// Runs every algorithm there is through one scenario and draws their windows to `path`. Returns what to say of it.
pub fn congestion_windows(path: &Path) -> Result<String> {
    let runs: Vec<(&str, Vec<Sample>)> = CC_AVAILABLE
        .iter()
        .map(|name| (*name, outside_recovery(cc::window(name, &SCENARIO))))
        .collect();
    draw(path, &runs).map_err(|e| anyhow!("can't draw {}: {e}", path.display()))?;
    let names: Vec<&str> = runs.iter().map(|(name, _)| *name).collect();
    Ok(format!("{}: {}", path.display(), names.join(", ")))
}

/// Leaves out the time of recovery: `snd_cwnd` is no window then, but counts what recovery has sent, as in FreeBSD.
fn outside_recovery(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.retain(|s| !s.recovery);
    samples
}

fn draw(path: &Path, runs: &[(&str, Vec<Sample>)]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (1000, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let seconds = SCENARIO.time.as_secs_f64();
    let highest = runs
        .iter()
        .flat_map(|(_, samples)| samples.iter().map(|s| s.cwnd))
        .fold(0.0, f64::max);
    let top = (highest / 50.0).ceil() * 50.0;
    let title = format!(
        "Congestion window: one flow, {} Mbit/s, {} ms, queue of {} frames",
        SCENARIO.rate / 1_000_000,
        SCENARIO.rtt.as_millis(),
        SCENARIO.queue
    );
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..seconds, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(13)
        .y_labels(10)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("virtual time, seconds (recovery left out)")
        .y_desc("cwnd, segments of 1448 bytes")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .draw()?;

    // What the path itself holds, and what it holds with the queue full.
    let frame = 1514.0;
    let product = SCENARIO.rate as f64 * SCENARIO.rtt.as_secs_f64() / 8.0 / frame;
    let marks = [
        (product, "the path is full"),
        (
            product + SCENARIO.mark_above as f64,
            "dctcp: frames are marked",
        ),
        (product + SCENARIO.queue as f64, "the queue is full"),
    ];
    for (level, what) in marks {
        let style = RGBColor(120, 120, 120).stroke_width(1);
        chart.draw_series(DashedLineSeries::new(
            [(0.0, level), (seconds, level)],
            6,
            4,
            style,
        ))?;
        let text = (FONT, 12).into_font().color(&RGBColor(90, 90, 90));
        let text = text.pos(Pos::new(HPos::Right, VPos::Bottom));
        chart.draw_series([Text::new(what, (seconds - 0.3, level + top * 0.02), text)])?;
    }
    for ((name, samples), colour) in runs.iter().zip(COLOURS) {
        let line = samples.iter().map(|s| (s.at_ms as f64 / 1000.0, s.cwnd));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(32)
        .background_style(WHITE)
        .border_style(RGBColor(180, 180, 180))
        .label_font((FONT, 14))
        .draw()?;
    root.present()?;
    Ok(())
}
