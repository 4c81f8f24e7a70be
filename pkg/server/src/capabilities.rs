//! `Capabilities`: what this server does, as it is configured.

use std::sync::Arc;

use gorego_storage::{BlobStore, Compressor, DigestFunction};
use reapi::{semver::SemVer, v2};
use tonic::Status;

use crate::{Options, digests};

/// Answers what the configuration decided.
#[derive(Debug)]
pub(crate) struct Capabilities {
    /// All but the digest functions, which are those of the store.
    answer: v2::ServerCapabilities,
    blobs: Arc<dyn BlobStore>,
}

impl Capabilities {
    pub(crate) fn new(options: &Options, blobs: Arc<dyn BlobStore>) -> Self {
        let limits = options.limits;
        // Identity goes without saying.
        let compressors = vec![Compressor::Zstd.to_proto() as i32];
        let cache = v2::CacheCapabilities {
            digest_functions: Vec::new(),
            action_cache_update_capabilities: Some(v2::ActionCacheUpdateCapabilities {
                update_enabled: options.ac_updates,
            }),
            cache_priority_capabilities: None,
            max_batch_total_size_bytes: i64::try_from(limits.max_batch_bytes).unwrap_or(i64::MAX),
            // Directories are stored as they come, so nothing stands against absolute targets.
            symlink_absolute_path_strategy: v2::symlink_absolute_path_strategy::Value::Allowed
                as i32,
            supported_compressors: compressors.clone(),
            supported_batch_update_compressors: compressors,
            max_cas_blob_size_bytes: limits
                .max_blob_size
                .map_or(0, |size| i64::try_from(size.get()).unwrap_or(i64::MAX)),
        };
        Self {
            blobs,
            answer: v2::ServerCapabilities {
                cache_capabilities: Some(cache),
                execution_capabilities: Some(v2::ExecutionCapabilities {
                    digest_function: DigestFunction::Sha256.to_proto() as i32,
                    exec_enabled: false,
                    execution_priority_capabilities: None,
                    supported_node_properties: Vec::new(),
                    digest_functions: Vec::new(),
                }),
                deprecated_api_version: None,
                low_api_version: Some(version(0)),
                high_api_version: Some(version(11)),
            },
        }
    }

    /// `GetCapabilities`: the same for every instance.
    pub(crate) async fn get(
        &self,
        request: &v2::GetCapabilitiesRequest,
    ) -> Result<v2::ServerCapabilities, Status> {
        digests::instance(&request.instance_name)?;
        let functions: Vec<_> = self.blobs.digest_functions().await;
        let functions: Vec<_> = functions.iter().map(|f| f.to_proto() as i32).collect();
        let mut answer = self.answer.clone();
        if let Some(execution) = &mut answer.execution_capabilities {
            execution.digest_functions.clone_from(&functions);
        }
        if let Some(cache) = &mut answer.cache_capabilities {
            cache.digest_functions = functions;
        }
        Ok(answer)
    }
}

/// A version of REAPI v2.
fn version(minor: i32) -> SemVer {
    SemVer {
        major: 2,
        minor,
        patch: 0,
        prerelease: String::new(),
    }
}
