//! `GetTree`.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use gorego_storage::TreeWalk;
use prost::Message as _;
use reapi::v2::{Directory, GetTreeRequest, GetTreeResponse};
use tonic::Status;

use super::Cas;
use crate::{
    digests,
    grpc::{Body, Framed},
    status::{from_tree, invalid_field},
};

/// How many bytes of directories go into one message, unless they are a single one: well below
/// what gRPC clients take.
const MESSAGE_BYTES: usize = 1024 * 1024;

impl Cas {
    /// The directories below a root, in as many messages as it takes. With a page size, as many
    /// directories as that, and a token for the rest.
    pub(crate) async fn get_tree(&self, request: GetTreeRequest) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let root = digests::digest("root_digest", function, request.root_digest.as_ref())?;
        let page_size = u64::try_from(request.page_size)
            .map_err(|_| invalid_field("page_size", "negative; 0 lets the server decide"))?;
        let mut walk = TreeWalk::new(Arc::clone(&self.blobs), root);
        if !request.page_token.is_empty() {
            let position = request
                .page_token
                .parse()
                .map_err(|_| invalid_field("page_token", "is none that this server gave out"))?;
            walk.skip_to(position).await.map_err(from_tree)?;
        }
        let mut pages = Pages {
            walk,
            left: (page_size > 0).then_some(page_size),
            next: None,
        };
        // The first directory is read here, so that an absent root is an error and not a stream.
        pages.advance().await?;
        let messages = stream::try_unfold(Some(pages), |pages| async move {
            let Some(pages) = pages else {
                return Ok(None);
            };
            pages.message().await.map(Some)
        });
        Ok(Body::messages(messages.boxed()))
    }
}

/// What is left to send.
struct Pages {
    walk: TreeWalk,
    /// How many directories the client still takes, if it said so.
    left: Option<u64>,
    /// The next directory.
    next: Option<Directory>,
}

impl Pages {
    async fn advance(&mut self) -> Result<(), Status> {
        let next = self.walk.next().await.map_err(from_tree)?;
        self.next = next.map(|(_, directory)| directory);
        Ok(())
    }

    /// The next message, and what comes after it.
    async fn message(mut self) -> Result<(Framed, Option<Self>), Status> {
        let mut message = GetTreeResponse::default();
        let mut bytes = 0;
        while let Some(directory) = self.next.take() {
            let len = directory.encoded_len();
            if bytes > 0 && bytes + len > MESSAGE_BYTES {
                self.next = Some(directory);
                return Ok((Framed::encode(&message), Some(self)));
            }
            bytes += len.max(1);
            message.directories.push(directory);
            let position = self.walk.position();
            self.advance().await?;
            self.left = self.left.map(|left| left - 1);
            if self.left == Some(0) {
                if self.next.is_some() {
                    message.next_page_token = position.to_string();
                }
                break;
            }
        }
        Ok((Framed::encode(&message), None))
    }
}
