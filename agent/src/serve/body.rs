//! Reading a request's body: not longer than allowed, not slower than allowed, and all bodies together within bounds.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;

/// The longest a body may take to arrive, its wait for room included, in seconds.
const BODY_TIMEOUT_S: u64 = 30;
/// Bodies of the largest size that may be in memory at once.
const LARGEST_BODIES: usize = 4;
/// Room for bodies is counted in units of this many bytes.
const UNIT_BYTES: usize = 1_024;

/// A body, and the room it takes as long as it is held.
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    #[expect(dead_code, reason = "it is held, not read")]
    room: OwnedSemaphorePermit,
}

/// Reads bodies within the limits.
#[derive(Clone)]
pub(super) struct BodyReader {
    limit_bytes: usize,
    room: Arc<Semaphore>,
}

fn units(bytes: usize) -> u32 {
    // An empty body takes a unit too: what belongs to it also needs memory.
    u32::try_from(bytes / UNIT_BYTES + 1).unwrap_or(u32::MAX)
}

impl BodyReader {
    /// Takes bodies of at most `limit_bytes`.
    pub(super) fn new(limit_bytes: usize) -> Self {
        let room = LARGEST_BODIES.saturating_mul(limit_bytes / UNIT_BYTES + 1).min(Semaphore::MAX_PERMITS);
        Self { limit_bytes, room: Arc::new(Semaphore::new(room)) }
    }

    /// Reads `body`, waiting for room if there is none.
    ///
    /// # Errors
    /// [`ApiError::Encoding`], [`ApiError::TooLarge`], [`ApiError::TooSlow`] or [`ApiError::Body`].
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        let shown = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|e| !e.is_empty() && *e != "identity") {
            return Err(ApiError::Encoding(shown(encoding)));
        }
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let too_large = || ApiError::TooLarge { limit_bytes: self.limit_bytes };
        let expected = match length {
            Some(length) => {
                usize::try_from(length).ok().filter(|length| *length <= self.limit_bytes).ok_or_else(too_large)?
            }
            None => self.limit_bytes,
        };
        let read = async {
            let room = Arc::clone(&self.room).acquire_many_owned(units(expected)).await;
            let room = room.map_err(|error| ApiError::Body(error.into()))?;
            let collected = Limited::new(body, self.limit_bytes)
                .collect()
                .await
                .map_err(|error| if error.is::<LengthLimitError>() { too_large() } else { ApiError::Body(error) })?;
            Ok(ReadBody { bytes: collected.to_bytes(), room })
        };
        match timeout(Duration::from_secs(BODY_TIMEOUT_S), read).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::TooSlow { limit_s: BODY_TIMEOUT_S }),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn chunks(pieces: &'static [&'static str]) -> Body {
        let stream = pieces.iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
        Body::from_stream(futures_util::stream::iter(stream))
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_whole() {
        let reader = BodyReader::new(8);
        let read = reader.read(&HeaderMap::new(), chunks(&["abc", "", "defgh"])).await.unwrap();
        assert_eq!(read.bytes, "abcdefgh");
    }

    #[tokio::test]
    async fn too_long_is_refused_whatever_the_header_says() {
        let reader = BodyReader::new(8);
        for length in [None, Some("3"), Some("9"), Some("18446744073709551616"), Some("-1")] {
            let headers = length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from_static(length)));
            let result = reader.read(&headers.into_iter().collect(), chunks(&["abc", "defghi"])).await;
            assert!(matches!(result, Err(ApiError::TooLarge { limit_bytes: 8 })), "{length:?}");
        }
    }

    #[tokio::test]
    async fn compressed_bodies_are_refused() {
        let reader = BodyReader::new(8);
        let headers = |encoding| HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
        assert!(matches!(reader.read(&headers("gzip"), Body::empty()).await, Err(ApiError::Encoding(_))));
        assert!(reader.read(&headers("identity"), Body::empty()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_wait_for_room_and_not_for_ever() {
        let reader = BodyReader::new(UNIT_BYTES);
        let mut held = Vec::new();
        for _ in 0..LARGEST_BODIES {
            held.push(reader.read(&HeaderMap::new(), Body::empty()).await.unwrap());
        }
        let result = reader.read(&HeaderMap::new(), Body::empty()).await;
        assert!(matches!(result, Err(ApiError::TooSlow { .. })));
        held.pop();
        assert!(reader.read(&HeaderMap::new(), Body::empty()).await.is_ok());
    }
}
