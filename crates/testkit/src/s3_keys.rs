//! The files of an S3 server under names that file systems allow: `s3s-fs` makes one file name of a whole key, and keys of
//! layers are too long for that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Files whose names stand for keys: each long part of a key has a short one in its place.
#[derive(Debug)]
pub(crate) struct ShortKeys {
    files: FileSystem,
    /// Long parts by their short ones.
    parts: Mutex<HashMap<String, String>>,
}

/// Bytes of a part of a key that stays as it is.
const PART_BYTES_MAX: usize = 40;

impl ShortKeys {
    pub(crate) fn over(files: FileSystem) -> Self {
        Self { files, parts: Mutex::default() }
    }

    fn short(&self, key: &str) -> String {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let short = |part: &str| {
            if part.len() <= PART_BYTES_MAX {
                return part.to_owned();
            }
            let short = format!(
                "long-{:016x}",
                crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, part.as_bytes())
            );
            parts.insert(short.clone(), part.to_owned());
            short
        };
        key.split('/').map(short).collect::<Vec<_>>().join("/")
    }

    fn long(&self, key: &str) -> String {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let long = |part| parts.get(part).map_or(part, String::as_str);
        key.split('/').map(long).collect::<Vec<_>>().join("/")
    }
}

/// Methods whose requests name a key.
macro_rules! by_key {
    ($($method:ident($input:ty) -> $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for ShortKeys {
            $(async fn $method(&self, mut request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                request.input.key = self.short(&request.input.key);
                self.files.$method(request).await
            })*

            async fn list_objects_v2(
                &self,
                mut request: S3Request<ListObjectsV2Input>,
            ) -> S3Result<S3Response<ListObjectsV2Output>> {
                request.input.prefix = request.input.prefix.map(|prefix| self.short(&prefix));
                // Short keys have an order of their own.
                let after = request.input.start_after.take();
                let mut answer = self.files.list_objects_v2(request).await?;
                for object in answer.output.contents.iter_mut().flatten() {
                    object.key = object.key.as_deref().map(|key| self.long(key));
                }
                if let Some(listed) = &mut answer.output.contents {
                    listed.retain(|object| object.key > after);
                }
                Ok(answer)
            }
        }
    };
}

by_key! {
    put_object(PutObjectInput) -> PutObjectOutput;
    get_object(GetObjectInput) -> GetObjectOutput;
    head_object(HeadObjectInput) -> HeadObjectOutput;
    delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part(UploadPartInput) -> UploadPartOutput;
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}
