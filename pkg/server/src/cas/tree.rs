//! `GetTree`.

pub(crate) mod walks;

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use gorego_grpc::{Body, Framed, full};
use gorego_limits::{Budget, Permit};
use gorego_storage::{BlobStoreExt as _, Digest, TreeWalk};
use prost::Message as _;
use reapi::v2::{Directory, GetTreeRequest, GetTreeResponse};
use tonic::Status;

use self::walks::Walks;
use crate::{
    digests,
    services::Reapi,
    status::{from_store, from_tree, invalid_field},
};

/// The most bytes of directories in one message, unless it has a single one: well below the limit of gRPC clients.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// The most bytes of directories in a message whose memory is not reserved.
const SMALL: usize = 64 * 1024;

impl Reapi {
    /// Returns the directories below a root. With a page size, returns that many directories and a token for the
    /// rest: the position to continue from.
    pub(crate) async fn get_tree(&self, request: GetTreeRequest) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let root = digests::digest("root_digest", function, request.root_digest.as_ref())?;
        let root = self.root_with_function(root).await?;
        let page_size = u64::try_from(request.page_size)
            .map_err(|_| invalid_field("page_size", "negative; 0 lets the server decide"))?;
        let walk = if request.page_token.is_empty() {
            TreeWalk::new(Arc::clone(&self.stores.blobs), root)
        } else {
            let position = position(&request.page_token).ok_or_else(foreign_token)?;
            self.resume(root, position).await?
        };
        let mut pages = Pages {
            walk,
            root,
            walks: Arc::clone(&self.walks),
            responses: self.transport().responses.clone(),
            left: if page_size > 0 { page_size } else { u64::MAX },
            next: None,
        };
        // The first directory is read here, so that a missing root is an error and not a stream.
        pages.advance().await?;
        let messages = stream::try_unfold(Some(pages), |pages| async move {
            let Some(pages) = pages else {
                return Ok(None);
            };
            pages.message().await.map(Some)
        });
        Ok(Body::messages(messages.boxed(), Permit::default()))
    }

    /// Returns the root under the function that it is stored with, which is that of all directories below it.
    async fn root_with_function(&self, root: Digest) -> Result<Digest, Status> {
        let blobs = &self.stores.blobs;
        if let Some(other) = root.other()
            && blobs.contains(&root).await.map_err(from_store)?
        {
            let is_first = blobs.contains(&root.only()).await.unwrap_or(false);
            return Ok(if is_first { root.only() } else { other });
        }
        Ok(root)
    }

    /// Returns a walk that continues at `position`. A cached one reads nothing again.
    async fn resume(&self, root: Digest, position: u32) -> Result<TreeWalk, Status> {
        let cached = self.walks.take(&root);
        let mut walk =
            cached.unwrap_or_else(|| TreeWalk::new(Arc::clone(&self.stores.blobs), root));
        walk.skip_to(position).await.map_err(from_tree)?;
        // Only a page before the last one has a token.
        if position >= walk.known() {
            return Err(foreign_token());
        }
        Ok(walk)
    }
}

/// Returns the position in a token, if the token is spelled as by this server.
fn position(token: &str) -> Option<u32> {
    let position: u32 = token.parse().ok()?;
    (position > 0 && position.to_string() == token).then_some(position)
}

fn foreign_token() -> Status {
    invalid_field("page_token", "not a token of this server for this tree")
}

/// The rest of a response.
struct Pages {
    walk: TreeWalk,
    root: Digest,
    /// The walks that wait for another page.
    walks: Arc<Walks>,
    /// The budget for each message, until the client has taken it.
    responses: Budget,
    /// The number of directories left on the client's page.
    left: u64,
    /// The next directory.
    next: Option<Directory>,
}

impl Pages {
    async fn advance(&mut self) -> Result<(), Status> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let next = self.walk.next(most).await.map_err(from_tree)?;
        self.next = next.map(|(_, directory)| directory);
        Ok(())
    }

    /// Returns the next message, and the rest after it.
    async fn message(mut self) -> Result<(Framed, Option<Self>), Status> {
        let mut message = GetTreeResponse::default();
        let mut bytes = 0;
        let mut memory = Permit::default();
        while let Some(directory) = self.next.take() {
            let len = directory.encoded_len();
            if bytes > 0 && bytes + len > MESSAGE_BYTES {
                self.next = Some(directory);
                return Ok((Framed::encode_within(&message, memory), Some(self)));
            }
            // Little is in memory while this waits.
            if memory.bytes() == 0 && bytes + len > SMALL {
                let most = MESSAGE_BYTES.max(len) as u64;
                memory = self.responses.reserve(most).await.map_err(full)?;
            }
            bytes += len.max(1);
            message.directories.push(directory);
            let position = self.walk.position();
            self.advance().await?;
            self.left -= 1;
            if self.left == 0 {
                if self.next.is_some() {
                    message.next_page_token = position.to_string();
                    self.walk.return_to(position);
                    self.walks.cache(self.root, self.walk);
                }
                break;
            }
        }
        Ok((Framed::encode_within(&message, memory), None))
    }
}
