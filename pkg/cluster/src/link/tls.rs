//! TLS settings derived from those of the cluster.

use gorego_tls::ClusterTls;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Returns settings that are derived again from those of the cluster whenever the files change, for example by `|tls|
/// tls.client_for(Some("node"))`. The task that derives them ends when no receiver is left.
pub fn follow<T: Send + Sync + 'static>(
    tasks: &TaskTracker,
    mut cluster: watch::Receiver<ClusterTls>,
    derive: impl Fn(&ClusterTls) -> T + Send + 'static,
) -> watch::Receiver<T> {
    let (sender, receiver) = watch::channel(derive(&cluster.borrow_and_update()));
    tasks.spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = cluster.changed() => {}
                () = sender.closed() => return,
                else => return,
            }
            sender.send_replace(derive(&cluster.borrow_and_update()));
        }
    });
    receiver
}
