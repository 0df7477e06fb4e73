//! What a program's metrics say.

use anyhow::Context;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Reads `http://ADDRESS/metrics`.
    pub async fn of(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        Ok(Self::parse(&text(address).await?))
    }

    /// Reads Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(parse_line).collect() }
    }

    /// Sum of all samples of a name whose labels hold these values; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let holds = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.iter().any(|(k, v)| k == key && v == value))
        };
        // Starts at +0: the sum of no floats is -0.
        self.samples.iter().filter(holds).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// All names.
    pub fn names(&self) -> std::collections::BTreeSet<String> {
        self.samples.iter().map(|sample| sample.name.clone()).collect()
    }
}

/// The metrics page as it is.
pub async fn text(address: std::net::SocketAddr) -> anyhow::Result<String> {
    let url = format!("http://{address}/metrics");
    let response =
        crate::http_load::client().get(&url).send().await.with_context(|| format!("cannot read {url}"))?;
    Ok(response.error_for_status()?.text().await?)
}

fn parse_line(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: Vec::new(), value });
    };
    // Values in our own labels hold no quotes or commas.
    let labels = labels
        .trim_end_matches('}')
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_summed() {
        let metrics = Metrics::parse("# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4\nb 0.5\n");
        assert_eq!(metrics.sum("a", &[]), 7.0);
        assert_eq!(metrics.sum("a", &[("x", "1")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 0.5);
        assert_eq!(metrics.sum("c", &[]), 0.0);
    }
}
