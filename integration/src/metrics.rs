//! Scrapes the metrics of a server, as Prometheus does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

/// The longest wait for a condition; far more than it needs, so that only a condition that never comes
/// true fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The values of metrics by name and labels: `name{label="value"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics(BTreeMap<String, String>);

impl Metrics {
    /// Scrapes the metrics at `address`.
    pub async fn of(address: SocketAddr) -> Self {
        let content = text_of(address).await;
        let samples = content.lines().filter(|line| !line.starts_with('#'));
        let named = samples.map(|line| {
            let sample = line.rsplit_once(' ');
            let (name, value) = sample.unwrap_or_else(|| panic!("`{line}` is no metric"));
            (name.to_owned(), value.to_owned())
        });
        Self(named.collect())
    }

    /// Returns the value of a metric, which must be a whole number.
    pub fn get(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        let number = value.parse();
        Some(number.unwrap_or_else(|e| panic!("{name} is {value}: {e}")))
    }

    /// Returns the sum of a metric's values for all labels, which must be whole numbers.
    pub fn sum(&self, name: &str) -> u64 {
        let labelled = format!("{name}{{");
        let names = self.0.keys().filter(|known| known.starts_with(&labelled));
        names.filter_map(|name| self.get(name)).sum()
    }

    /// Returns the value of a metric in seconds; `None` if there is no such metric. Panics if it is no number.
    pub fn seconds(&self, name: &str) -> Option<f64> {
        let value = self.0.get(name)?;
        let number = value.parse();
        Some(number.unwrap_or_else(|e| panic!("{name} is {value}: {e}")))
    }

    /// Whether there is a metric of that name, with any labels if the name has none.
    pub fn has(&self, name: &str) -> bool {
        let labelled = format!("{name}{{");
        let mut known = self.0.keys();
        known.any(|known| known == name || known.starts_with(&labelled))
    }

    /// Scrapes until the metrics satisfy `met`. Panics after a minute.
    pub async fn wait_for(address: SocketAddr, mut met: impl FnMut(&Self) -> bool) -> Self {
        let start = time::Instant::now();
        loop {
            let metrics = Self::of(address).await;
            if met(&metrics) {
                return metrics;
            }
            assert!(start.elapsed() < PATIENCE, "not met in time: {metrics:#?}");
        }
    }
}

/// Names of metrics with the names of their labels. The name of a histogram is that of all its series.
pub type Families = BTreeMap<String, BTreeSet<String>>;

/// Scrapes the metrics at `address`. Returns their names and labels, and checks that each is described.
pub async fn families(address: SocketAddr) -> Families {
    let text = text_of(address).await;
    let mut families = Families::new();
    let mut described = "";
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            (described, _) = help.split_once(' ').expect("a description");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, _) = kind.split_once(' ').expect("a type");
            assert_eq!(described, name, "a metric without a description");
            name.clone_into(&mut current);
        } else {
            assert!(line.starts_with(&current), "{line} is not of {current}");
            let names = families.entry(current.clone()).or_default();
            names.extend(labels_of(line).filter(|label| label != "le"));
        }
    }
    families
}

/// Returns the names of the labels in `name{label="value",...}`, whose values hold no quotes.
pub fn labels_of(series: &str) -> impl Iterator<Item = String> {
    let labels = series.split_once('{').map_or("", |(_, labels)| labels);
    let outside = labels.split('"').step_by(2);
    let named = outside.filter_map(|part| part.strip_suffix('='));
    named.map(|name| name.trim_start_matches(',').to_owned())
}

async fn text_of(address: SocketAddr) -> String {
    let scraped = time::timeout(PATIENCE, scrape(address)).await;
    let scraped = scraped.unwrap_or_else(|_| panic!("no metrics from {address} in time"));
    let text = scraped.unwrap_or_else(|e| panic!("scraping {address}: {e}"));
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let (_, content) = text.split_once("\r\n\r\n").expect("headers end");
    content.to_owned()
}

async fn scrape(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    // The server closes the connection.
    stream.read_to_string(&mut response).await?;
    Ok(response)
}
