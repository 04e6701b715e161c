//! The files of an S3 server under names that file systems allow: `s3s-fs` makes one file name of a whole key, and keys of
//! layers are too long for that.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Files whose names stand for keys: each long part of a key has a short one in its place.
#[derive(Debug)]
pub(crate) struct ShortKeys {
    files: FileSystem,
    /// The directory that has files of the unfinished uploads.
    root: PathBuf,
    /// Long parts by their short ones.
    parts: Mutex<HashMap<String, String>>,
}

/// Bytes of a part of a key that stays as it is.
const PART_BYTES_MAX: usize = 40;

impl ShortKeys {
    pub(crate) fn over(files: FileSystem, root: PathBuf) -> Self {
        Self { files, root, parts: Mutex::default() }
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

    /// The short form of a key; where that names a directory, of which S3 has none, a name of no object.
    fn of_object(&self, bucket: &str, key: &str) -> String {
        let short = self.short(key);
        if self.root.join(bucket).join(&short).is_dir() { format!("{short}/.no-object") } else { short }
    }

    fn long(&self, key: &str) -> String {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let long = |part| parts.get(part).map_or(part, String::as_str);
        key.split('/').map(long).collect::<Vec<_>>().join("/")
    }
}

impl ShortKeys {
    /// Joins the parts of an upload; they may have any length, so that a test needs few bytes for many of them.
    async fn join_parts(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id, multipart_upload, .. } = &request.input;
        let begun = self.root.join(format!(".upload-{upload_id}.json"));
        if !begun.exists() {
            return Err(S3ErrorCode::NoSuchUpload.into());
        }
        let (mut whole, mut files) = (Vec::new(), vec![begun]);
        for part in multipart_upload.iter().flat_map(|parts| parts.parts.iter().flatten()) {
            let number = part.part_number.ok_or(S3ErrorCode::InvalidPart)?;
            let file = self.root.join(format!(".upload_id-{upload_id}.part-{number}"));
            whole.extend(std::fs::read(&file).map_err(|_| S3ErrorCode::InvalidPart)?);
            files.push(file);
        }
        let written = PutObjectInput {
            bucket: bucket.clone(),
            key: key.clone(),
            body: Some(Body::from(Bytes::from(whole)).into()),
            ..PutObjectInput::default()
        };
        let written = self.put_object(request.map_input(|_| written)).await?;
        for file in files {
            std::fs::remove_file(file).map_err(|_| S3ErrorCode::InternalError)?;
        }
        let joined = CompleteMultipartUploadOutput { e_tag: written.output.e_tag, ..Default::default() };
        Ok(S3Response::new(joined))
    }
}

/// The answer of S3 where `s3s-fs` says that access to an unknown upload is denied. Keys are checked before it is asked.
fn unknown_upload(error: S3Error) -> S3Error {
    if *error.code() == S3ErrorCode::AccessDenied { S3ErrorCode::NoSuchUpload.into() } else { error }
}

/// Methods whose requests name a key.
macro_rules! by_key {
    ($($method:ident($input:ty) -> $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for ShortKeys {
            $(async fn $method(&self, mut request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                request.input.key = self.of_object(&request.input.bucket, &request.input.key);
                self.files.$method(request).await.map_err(unknown_upload)
            })*

            async fn complete_multipart_upload(
                &self,
                request: S3Request<CompleteMultipartUploadInput>,
            ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
                self.join_parts(request).await
            }

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
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
}
