//! Nodes for tests: links, a server for them, and certificates.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_grpc::{Listen, Peers};
use gorego_scheduler::Generation;
use gorego_tls::{ClusterFiles, ClusterTls, NodeIdentity};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose as Usage, IsCa,
    KeyPair, SanType,
};
use reapi::gorego::cluster::{self as proto, Frame, Record};
use tempfile::TempDir;
use tokio::{io::copy_bidirectional, net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::super::{Connect, Event, Events, How, Links, Options, Socket, Tcp};
use crate::testing::LinkService;

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Connections through a task, which can be stopped.
#[derive(Clone, Debug, Default)]
pub(super) struct Wires(Arc<Mutex<JoinSet<()>>>);

impl Wires {
    /// Breaks all connections.
    pub(super) fn cut(&self) {
        self.0.lock().abort_all();
    }
}

#[async_trait]
impl Connect for Wires {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        let mut stream = Tcp.connect(address).await?;
        let (near, mut far) = tokio::io::duplex(4096);
        self.0.lock().spawn(async move {
            let _ = copy_bidirectional(&mut far, &mut stream).await;
        });
        Ok(Box::new(near))
    }
}

/// A node.
pub(super) struct Node {
    pub(super) links: Arc<Links>,
    pub(super) events: Events,
    pub(super) address: String,
    pub(super) wires: Wires,
    _server: JoinSet<Result<(), gorego_grpc::Error>>,
}

pub(super) fn generation(name: &str, number: u64) -> Generation {
    Generation::new(name, number).unwrap()
}

/// Returns the record of a node at an address.
pub(super) fn record(me: &Generation, address: String) -> Record {
    Record {
        node: Some(proto::Node {
            name: me.node().to_owned(),
            generation: me.number(),
        }),
        address,
        ..Record::default()
    }
}

impl Node {
    /// Starts generation 1 of a node of the cluster `build`.
    pub(super) async fn start(name: &str, tls: Option<ClusterTls>) -> Self {
        Self::of("build", &generation(name, 1), tls).await
    }

    pub(super) async fn of(cluster: &str, me: &Generation, tls: Option<ClusterTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let wires = Wires::default();
        let connect = Arc::new(wires.clone());
        let node = Self::on(listener, address, connect, cluster, me, tls);
        Self { wires, ..node }
    }

    /// Starts a node on any network.
    pub(crate) fn on(
        listener: impl Listen,
        address: String,
        connect: Arc<dyn Connect>,
        cluster: &str,
        me: &Generation,
        tls: Option<ClusterTls>,
    ) -> Self {
        let tls_of_server = tls.as_ref().map(|tls| watch::channel(tls.server()).1);
        let (links, events) = Links::new(Options {
            cluster: cluster.to_owned(),
            me: me.clone(),
            record: record(me, address.clone()),
            tls: tls.map(|tls| watch::channel(tls).1),
            connect,
            max_nodes: 4,
        });
        let options = gorego_grpc::Options {
            tls: tls_of_server,
            peers: Peers::Nodes,
            ..gorego_grpc::Options::default()
        };
        let mesh = LinkService(Arc::clone(&links));
        let shutdown = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(gorego_grpc::serve(listener, mesh, options, shutdown));
        Self {
            links,
            events,
            address,
            wires: Wires::default(),
            _server: server,
        }
    }

    /// Opens a link to a node, by its name and address.
    pub(super) async fn dial(&self, to: &Self) -> Result<Generation, super::super::DialError> {
        let node = to.links.me().node();
        self.links.dial(&to.address, Some(node)).await
    }

    pub(super) async fn event(&mut self) -> Event {
        let event = timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event").expect("links that exist")
    }

    /// Waits for the start of a link, which has to be the next event.
    pub(super) async fn up(&mut self) -> Generation {
        match self.event().await {
            Event::Up { peer, hello } => {
                let node = hello.record.unwrap().node.unwrap();
                assert_eq!((&*node.name, node.generation), (peer.node(), peer.number()));
                peer
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of a link, which has to be the next event.
    pub(super) async fn down(&mut self) -> How {
        match self.event().await {
            Event::Down { how, .. } => how,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a frame, which has to be the next event.
    pub(super) async fn frame(&mut self) -> Frame {
        match self.event().await {
            Event::Frame { frame, .. } => frame,
            other => panic!("{other:?}"),
        }
    }
}

/// Starts two nodes with a link.
pub(super) async fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::start("a", None).await, Node::start("b", None).await);
    a.dial(&b).await.unwrap();
    assert_eq!((a.up().await.node(), b.up().await.node()), ("b", "a"));
    (a, b)
}

/// An authority of nodes.
pub(super) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Self {
            folder: TempDir::new().unwrap(),
            issuer: issuer.unwrap(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Issues a certificate for a node of the cluster `build`.
    pub(super) fn node(&self, name: &str) -> ClusterTls {
        self.issue("build", name, |_| {})
    }

    pub(super) fn issue(
        &self,
        cluster: &str,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> ClusterTls {
        let node = NodeIdentity {
            cluster: cluster.to_owned(),
            node: name.to_owned(),
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(node.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![Usage::ServerAuth, Usage::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = ClusterFiles {
            node,
            cert_file: self.write("node.pem", &certificate.pem()),
            key_file: self.write("node.key", &key.serialize_pem()),
            ca_file: self.write("ca.pem", &self.issuer.pem()),
            clients_ca_file: None,
        };
        files.load().unwrap()
    }
}
