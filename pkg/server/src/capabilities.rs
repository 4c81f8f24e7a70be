//! `Capabilities`.

use gorego_execution::NODE_PROPERTIES;
use gorego_grpc::Body;
use gorego_storage::{Compressor, DigestFunction};
use reapi::{
    semver::SemVer,
    v2::{
        ActionCacheUpdateCapabilities, CacheCapabilities, ExecutionCapabilities,
        GetCapabilitiesRequest, PriorityCapabilities, ServerCapabilities,
        priority_capabilities::PriorityRange, symlink_absolute_path_strategy,
    },
};
use tonic::Status;

use crate::{digests, services::Reapi};

impl Reapi {
    /// `GetCapabilities`: the same for every instance.
    pub(crate) async fn get_capabilities(
        &self,
        request: GetCapabilitiesRequest,
    ) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let limits = self.options.limits;
        let functions = self.stores.blobs.digest_functions().await;
        let functions: Vec<_> = functions.iter().map(|f| f.to_proto() as i32).collect();
        // Identity is implied.
        let compressors = vec![Compressor::Zstd.to_proto() as i32];
        // Directories are stored as they are, so absolute targets are allowed.
        let symlinks = symlink_absolute_path_strategy::Value::Allowed;
        let cache = CacheCapabilities {
            digest_functions: functions.clone(),
            action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities {
                update_enabled: self.options.ac_updates,
            }),
            max_batch_total_size_bytes: i64::try_from(limits.max_batch_bytes).unwrap_or(i64::MAX),
            symlink_absolute_path_strategy: symlinks as i32,
            supported_compressors: compressors.clone(),
            supported_batch_update_compressors: compressors,
            max_cas_blob_size_bytes: limits
                .max_blob_size
                .map_or(0, |size| i64::try_from(size.get()).unwrap_or(i64::MAX)),
            ..CacheCapabilities::default()
        };
        let execution = self.execution_capabilities(functions);
        let version = |minor| SemVer {
            major: 2,
            minor,
            ..SemVer::default()
        };
        let capabilities = ServerCapabilities {
            cache_capabilities: Some(cache),
            execution_capabilities: Some(execution),
            low_api_version: Some(version(0)),
            high_api_version: Some(version(11)),
            ..ServerCapabilities::default()
        };
        Body::reply(self.transport(), &capabilities).await
    }

    fn execution_capabilities(&self, digest_functions: Vec<i32>) -> ExecutionCapabilities {
        let functions = ExecutionCapabilities {
            digest_function: DigestFunction::Sha256.to_proto() as i32,
            digest_functions,
            ..ExecutionCapabilities::default()
        };
        let executor = self.options.executor.as_ref();
        if !executor.is_some_and(|executor| executor.is_for_clients()) {
            return functions;
        }
        let priorities = vec![PriorityRange {
            min_priority: i32::MIN,
            max_priority: i32::MAX,
        }];
        ExecutionCapabilities {
            exec_enabled: true,
            execution_priority_capabilities: Some(PriorityCapabilities { priorities }),
            supported_node_properties: NODE_PROPERTIES.map(str::to_owned).to_vec(),
            ..functions
        }
    }
}
