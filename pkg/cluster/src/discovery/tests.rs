use std::net::Ipv4Addr;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;

/// Serves a few names of the DNS over UDP on loopback.
async fn serve(tasks: &mut JoinSet<()>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tasks.spawn(async move {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query).await {
            socket.send_to(&answer(&query[..len]), from).await.unwrap();
        }
    });
    address
}

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

fn answer(query: &[u8]) -> Vec<u8> {
    let mut at = 12;
    let mut labels = Vec::new();
    while query[at] > 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let name = labels.join(".");
    let data: Vec<Vec<u8>> = match (name.as_str(), kind) {
        ("nodes.test", A) => vec![vec![10, 0, 0, 1], vec![10, 0, 0, 2]],
        ("nodes.test", AAAA) => vec![[vec![0xfd], vec![0; 14], vec![1]].concat()],
        ("host.test", A) => vec![vec![10, 0, 0, 9]],
        ("_mesh._tcp.test" | "host.test", SRV) => {
            vec![b"\0\0\0\0\x1f\x40\x04host\x04test\0".into()]
        }
        _ => vec![],
    };
    let known =
        ["nodes.test", "host.test", "_mesh._tcp.test", "empty.test"].contains(&name.as_str());
    let code = if known { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([
        0x81,
        0x80 | code,
        0,
        1,
        0,
        u8::try_from(data.len()).unwrap(),
        0,
        0,
        0,
        0,
    ]);
    answer.extend(&query[12..at + 5]);
    for data in data {
        answer.extend([
            0xc0,
            12,
            0,
            u8::try_from(kind).unwrap(),
            0,
            1,
            0,
            0,
            0,
            60,
            0,
        ]);
        answer.push(u8::try_from(data.len()).unwrap());
        answer.extend(data);
    }
    answer
}

async fn look(places: Places) -> (Vec<String>, Vec<String>) {
    let mut tasks = JoinSet::new();
    let server = serve(&mut tasks).await;
    let mut discovery = Discovery::with_lookup(places, Arc::new(SystemLookup::at(server)));
    let found = discovery.look().await;
    let failures = discovery
        .failures()
        .iter()
        .map(|(place, error)| format!("{place}: {error}"));
    (
        found.iter().map(ToString::to_string).collect(),
        failures.collect(),
    )
}

fn name(name: &str) -> Places {
    Places::Dns {
        name: name.into(),
        port: 7946,
    }
}

#[tokio::test]
async fn name_yields_all_its_addresses() {
    let (found, failures) = look(name("nodes.test.")).await;
    assert_eq!(found, ["10.0.0.1:7946", "10.0.0.2:7946", "[fd00::1]:7946"]);
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test]
async fn service_records_bring_their_port() {
    let (found, _) = look(name("_mesh._tcp.test.")).await;
    assert_eq!(found, ["10.0.0.9:8000"]);
}

#[tokio::test]
async fn only_names_of_services_are_looked_up_as_such() {
    // Kubernetes has SRV records for all ports of a service.
    let (found, _) = look(name("host.test.")).await;
    assert_eq!(found, ["10.0.0.9:7946"]);
    let (found, failures) = look(name("_none._tcp.test.")).await;
    assert!(found.is_empty());
    assert_eq!(failures.len(), 1, "{failures:?}");
}

#[tokio::test]
async fn names_without_addresses_are_failures() {
    for missing in ["none.test.", "empty.test."] {
        let (found, failures) = look(name(missing)).await;
        assert!(found.is_empty());
        assert_eq!(failures.len(), 1, "{failures:?}");
    }
}

#[tokio::test]
async fn list_yields_what_can_be_looked_up() {
    let entries = [
        "nodes.test.:1",
        "127.0.0.1:2",
        "[::1]:3",
        "none.test.:4",
        "bare",
    ];
    let (found, failures) = look(Places::List(entries.map(Into::into).into())).await;
    assert_eq!(
        found,
        [
            "10.0.0.1:1",
            "10.0.0.2:1",
            "127.0.0.1:2",
            "[::1]:3",
            "[fd00::1]:1"
        ]
    );
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(
        failures[0].contains("bare: not <host>:<port>"),
        "{failures:?}"
    );
}

/// A source that never answers.
struct Silent;

#[async_trait]
impl Lookup for Silent {
    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, LookupError> {
        std::future::pending().await
    }

    async fn services(&self, _: &str) -> Result<Vec<(String, u16)>, LookupError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn silent_server_does_not_block_discovery() {
    let mut discovery = Discovery::with_lookup(name("nodes.test"), Arc::new(Silent));
    assert!(discovery.look().await.is_empty());
    assert!(
        discovery.failures()["nodes.test"]
            .to_string()
            .contains("no answer within 8 s")
    );
}

#[test]
fn lonely_node_looks_more_often() {
    let mut schedule = Schedule::default();
    assert_eq!(schedule.due(true), Time::ZERO);
    schedule.looked(Time::from_secs(5));
    assert_eq!(schedule.due(true), Time::from_secs(15));
    assert_eq!(schedule.due(false), Time::from_secs(35));
}
