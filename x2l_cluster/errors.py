"""The one tree of errors.

Every error says what happened, to which id, and what to do about it. ``code`` is stable and meant for programs;
``http_status`` is what an HTTP face answers with; ``retryable`` tells whether the same call may succeed later.

    X2LError
    ├── InvalidInput                 the caller must change something
    │   ├── InvalidRecipe
    │   ├── InvalidQuestion
    │   ├── PromptTooLong
    │   ├── ExceedsDevice
    │   ├── SourceRefused
    │   ├── PathRefused
    │   ├── SourceTooLarge
    │   ├── BodyTooLarge
    │   ├── UploadBroken
    │   ├── BadArchive
    │   └── MethodNotAllowed
    ├── AccessError                  who asks, and how much
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── RateLimited
    │   └── QuotaExceeded
    ├── NotFound
    │   ├── UnknownVideo
    │   ├── UnknownJob
    │   ├── UnknownSession
    │   ├── UnknownTenant
    │   ├── UnknownKey
    │   └── SourceMissing
    ├── VideoError                   the file is at fault
    │   ├── VideoFileNotFound
    │   ├── NotAVideo
    │   ├── NoVideoStream
    │   ├── EmptyVideo
    │   ├── CorruptVideo
    │   ├── ResolutionChanged
    │   ├── SpanOutsideVideo
    │   ├── NotAContinuation
    │   ├── DecodeTimeout
    │   └── DecoderCrashed
    ├── ModelError
    │   ├── ModelNotAvailable
    │   ├── ModelMismatch
    │   ├── UnsupportedModel
    │   ├── CalibrationMissing
    │   └── NonFinite
    ├── KVError                      the tiers
    │   ├── BlockCorrupt
    │   │   └── BlockStale
    │   ├── BlockMissing
    │   ├── KVMissing
    │   ├── StoreUnavailable
    │   │   └── StoreLate
    │   └── StoreFull
    ├── StateError
    │   ├── StaleEpoch
    │   ├── ManifestConflict
    │   ├── ManifestCorrupt
    │   ├── RecordCorrupt
    │   ├── JobConflict
    │   ├── LeaseLost
    │   ├── JobAbandoned
    │   ├── TenantConflict
    │   └── IdempotencyConflict
    ├── ServiceError                 the service cannot take it on just now
    │   ├── FetchFailed
    │   ├── Overloaded
    │   ├── DeadlineExceeded
    │   ├── AnswerLost
    │   └── ConnectionLost
    └── Cancelled
"""

from __future__ import annotations

from typing import ClassVar


class X2LError(Exception):
    """Root of everything this package raises on purpose. ``retry_after_s`` is when trying again has a point."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, *about: object, retry_after_s: float | None = None) -> None:
        super().__init__(*about)
        self.retry_after_s = retry_after_s


class InvalidInput(X2LError):
    """A value the caller gave cannot be used."""

    code = "invalid_input"
    http_status = 422


class InvalidRecipe(InvalidInput):
    """The recipe contradicts itself or the model."""

    code = "invalid_recipe"


class InvalidQuestion(InvalidInput):
    """The question is empty, too long, or names something impossible."""

    code = "invalid_question"


class PromptTooLong(InvalidInput):
    """Prompt and answer would not fit into the positions the model was trained for."""

    code = "prompt_too_long"


class ExceedsDevice(InvalidInput):
    """What the question needs on the device is more than the device has for one question."""

    code = "exceeds_device"


class SourceRefused(InvalidInput):
    """The URL is none this service fetches from."""

    code = "source_refused"


class PathRefused(InvalidInput):
    """The path is none this service reads from."""

    code = "path_refused"


class SourceTooLarge(InvalidInput):
    """More bytes than the service takes for one video."""

    code = "source_too_large"
    http_status = 413


class BodyTooLarge(InvalidInput):
    """More bytes than the service takes for a request that is no upload."""

    code = "body_too_large"
    http_status = 413


class UploadBroken(InvalidInput):
    """An upload that ended early, stood still for too long, or is not written as it should be."""

    code = "upload_broken"
    http_status = 400


class BadArchive(InvalidInput):
    """A file that should hold an exported index holds none, or a damaged one."""

    code = "bad_archive"


class MethodNotAllowed(InvalidInput):
    """The address exists, but not for that method."""

    code = "method_not_allowed"
    http_status = 405


class AccessError(X2LError):
    """Not for this caller, or not so much of it."""

    code = "access_error"
    http_status = 403


class Unauthenticated(AccessError):
    """The service wants a key, and there is none or one it does not know."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(AccessError):
    """The key is known and does not open this."""

    code = "forbidden"


class RateLimited(AccessError):
    """More requests in a short time than the caller has."""

    code = "rate_limited"
    http_status = 429
    retryable = True


class QuotaExceeded(AccessError):
    """More than the caller may have at one time, or in a day."""

    code = "quota_exceeded"
    http_status = 429
    retryable = True


class NotFound(X2LError):
    """Nothing has that id, for this tenant."""

    code = "not_found"
    http_status = 404


class UnknownVideo(NotFound):
    """No index of that video is visible."""

    code = "unknown_video"


class UnknownJob(NotFound):
    """No job of that id."""

    code = "unknown_job"


class UnknownSession(NotFound):
    """No session of that id, or its time is over."""

    code = "unknown_session"


class UnknownTenant(NotFound):
    """No tenant has that name."""

    code = "unknown_tenant"


class UnknownKey(NotFound):
    """The tenant has no API key of that id."""

    code = "unknown_key"


class SourceMissing(NotFound):
    """The original bytes of a video are not kept any more."""

    code = "source_missing"


class VideoError(X2LError):
    """The video file itself is at fault."""

    code = "video_error"
    http_status = 422


class VideoFileNotFound(VideoError):
    """There is no such file, or it cannot be read."""

    code = "video_file_not_found"
    http_status = 404


class NotAVideo(VideoError):
    """The bytes are no container any decoder knows."""

    code = "not_a_video"


class NoVideoStream(VideoError):
    """A container without pictures (audio only, say)."""

    code = "no_video_stream"


class EmptyVideo(VideoError):
    """A video stream without a single decodable frame."""

    code = "empty_video"


class CorruptVideo(VideoError):
    """The container or its index is damaged beyond salvage."""

    code = "corrupt_video"


class ResolutionChanged(VideoError):
    """The frame size changes inside the stream."""

    code = "resolution_changed"


class SpanOutsideVideo(VideoError):
    """The asked-for span holds no frame."""

    code = "span_outside_video"


class NotAContinuation(VideoError):
    """The file does not go on from where the indexed recording ended."""

    code = "not_a_continuation"


class DecodeTimeout(VideoError):
    """The decoder made no progress before its deadline and was killed."""

    code = "decode_timeout"
    http_status = 504
    retryable = True


class DecoderCrashed(VideoError):
    """The decoder process died."""

    code = "decoder_crashed"
    retryable = True


class ModelError(X2LError):
    """The model cannot do what is asked."""

    code = "model_error"


class ModelNotAvailable(ModelError):
    """Weights, configuration or tokenizer are not to be had here."""

    code = "model_not_available"
    http_status = 503


class ModelMismatch(ModelError):
    """The index was made by another model than the one that is asked."""

    code = "model_mismatch"
    http_status = 409


class UnsupportedModel(ModelError):
    """The architecture cannot be offloaded by this method."""

    code = "unsupported_model"
    http_status = 422


class CalibrationMissing(ModelError):
    """The scorer needs a calibration this model does not have."""

    code = "calibration_missing"
    http_status = 409


class NonFinite(ModelError):
    """The model produced numbers that are not finite, or too large to be stored."""

    code = "non_finite"


class KVError(X2LError):
    """A tier could not do its work."""

    code = "kv_error"
    http_status = 503


class BlockCorrupt(KVError):
    """A blob is not the block it should be; a counted miss, never an answer."""

    code = "block_corrupt"
    retryable = True


class BlockStale(BlockCorrupt):
    """A sound blob, but another one than the reader knows of: of another chunk, epoch, or run."""

    code = "block_stale"


class BlockMissing(KVError):
    """No tier holds that block."""

    code = "block_missing"
    retryable = True


class KVMissing(KVError):
    """Not even the coarse level of a chunk can be had; the video must be indexed again."""

    code = "kv_missing"
    retryable = True


class StoreUnavailable(KVError):
    """The store does not answer."""

    code = "store_unavailable"
    retryable = True


class StoreLate(StoreUnavailable):
    """The store did not deliver within the time the caller had."""

    code = "store_late"


class StoreFull(KVError):
    """The store refuses writes for want of space."""

    code = "store_full"
    http_status = 507
    retryable = True


class StateError(X2LError):
    """The record of what exists disagrees with the caller."""

    code = "state_error"
    http_status = 409


class StaleEpoch(StateError):
    """Somebody else has taken over the work; nothing of the caller's is published."""

    code = "stale_epoch"


class ManifestConflict(StateError):
    """The step does not fit the manifest as it stands (a gap, another row, a finished index)."""

    code = "manifest_conflict"


class ManifestCorrupt(StateError):
    """The stored record of a video is damaged."""

    code = "manifest_corrupt"
    http_status = 500


class RecordCorrupt(StateError):
    """The stored record of a job, a tenant or a session is damaged."""

    code = "record_corrupt"
    http_status = 500


class JobConflict(StateError):
    """The job is in no state for that."""

    code = "job_conflict"


class LeaseLost(StateError):
    """The job is no longer this worker's; nothing of what it says about it counts."""

    code = "lease_lost"


class JobAbandoned(StateError):
    """Worker after worker took the job and went away without a word."""

    code = "job_abandoned"
    http_status = 500


class TenantConflict(StateError):
    """There is a tenant of that name already, with other quotas."""

    code = "tenant_conflict"


class IdempotencyConflict(StateError):
    """The idempotency key was used for another request."""

    code = "idempotency_conflict"


class ServiceError(X2LError):
    """The service cannot do it now."""

    code = "service_error"
    http_status = 503
    retryable = True


class FetchFailed(ServiceError):
    """The place a URL names did not deliver."""

    code = "fetch_failed"
    http_status = 502


class Overloaded(ServiceError):
    """Too much is waiting already, or the service is shutting down."""

    code = "overloaded"


class DeadlineExceeded(ServiceError):
    """It was not done in the time the caller gave."""

    code = "deadline_exceeded"
    http_status = 504


class AnswerLost(ServiceError):
    """What was writing the answer broke down; the question is none the worse for it."""

    code = "answer_lost"


class ConnectionLost(ServiceError):
    """The service cannot be reached, or the connection broke before all was said."""

    code = "connection_lost"


class Cancelled(X2LError):
    """The caller asked to stop."""

    code = "cancelled"
    http_status = 499


def error_class(code: str) -> type[X2LError]:
    """The class a code stands for; the root for a code of a newer version."""
    left = [X2LError]
    while left:
        kind = left.pop()
        if vars(kind).get("code") == code:  # its own, not one it inherited
            return kind
        left.extend(kind.__subclasses__())
    return X2LError
