//! The end of a node that can take no part in its cluster.

use std::pin::pin;

use tokio_util::sync::CancellationToken;

use super::Error;

/// Serves until `serving` ends. Once `failed` ends, cancels `stop`, since the other nodes count on this one, and the
/// process can be started again.
pub(super) async fn or_failed(
    serving: impl Future<Output = Result<(), gorego_grpc::Error>>,
    failed: impl Future<Output = ()>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut serving = pin!(serving);
    tokio::select! {
        served = &mut serving => Ok(served?),
        () = failed => {
            tracing::error!("shutting down: {}", Error::Failed);
            stop.cancel();
            serving.await?;
            Err(Error::Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_node_stops_with_an_error_when_it_can_take_no_part_in_its_cluster() {
        for fails in [true, false] {
            let stop = CancellationToken::new();
            let serving = async {
                if fails {
                    stop.cancelled().await;
                }
                Ok(())
            };
            let failed = async {
                if !fails {
                    pending::<()>().await;
                }
            };
            let served = or_failed(serving, failed, &stop).await;
            assert_eq!(matches!(served, Err(Error::Failed)), fails);
            assert_eq!((stop.is_cancelled(), served.is_ok()), (fails, !fails));
        }
    }
}
