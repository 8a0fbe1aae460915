//! The closed list of ways a call can fail.

/// What went wrong, in the words of the contract.
///
/// Every primitive's error maps to one of these through its `kind()`; the one table from a kind to
/// status, title and retryability is in [`crate::http::problem`]. Match it without `_`, so that a new
/// kind has to be thought about everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is not syntactically what the protocol asks for.
    Malformed,
    /// No credential, or one that does not verify.
    Unauthenticated,
    /// A verified caller that policy does not let do this.
    Forbidden,
    /// The route, the name or the thing does not exist for this tenant.
    NotFound,
    /// The path exists, with other methods.
    MethodNotAllowed,
    /// The state of the thing does not allow it.
    Conflict,
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed,
    /// Over a size limit.
    TooLarge,
    /// A body of a media type that the route does not take.
    UnsupportedMediaType,
    /// Well-formed, and wrong: the fields are named.
    Invalid,
    /// The route needs `If-Match`.
    PreconditionRequired,
    /// A rate limit said no.
    RateLimited,
    /// An entitlement's quota is used up; waiting does not help.
    QuotaExhausted,
    /// This process has too much to do.
    Overloaded,
    /// The backing service cannot be reached or does not answer; nothing was written.
    BackendUnavailable,
    /// The backing service may or may not have done it.
    OutcomeUnknown,
    /// The call's time ran out.
    DeadlineExceeded,
    /// The request was meant for another host.
    Misdirected,
    /// An idempotency key came back with another body.
    IdempotencyKeyReused,
    /// The first call with this idempotency key is still running.
    IdempotencyInProgress,
    /// This route takes no `Idempotency-Key`.
    IdempotencyNotSupported,
    /// A defect of Outrigger's own.
    Internal,
}

/// What caused an error. An I/O error does not give what it wraps as its cause, but that one's cause.
#[must_use]
pub fn cause_of<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
