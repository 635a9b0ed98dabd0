//! Calls that must answer in time.

use crate::StageError;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Longest wait for one call of a processor or a transformer. Long enough for a large object on a slow line, and half
/// of the bus's lease, so that a call that is never answered is repeated before its messages come a second time.
pub(crate) const CALL: Duration = Duration::from_secs(300);

/// The answer of `call`, or `None` after [`CALL`]. A call that is ready at once costs no timer.
pub(crate) async fn in_time<F: Future>(call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    match futures_util::poll!(call.as_mut()) {
        Poll::Ready(answer) => Some(answer),
        // Boxed, so that what never waits does not carry a timer.
        Poll::Pending => Box::pin(tokio::time::timeout(CALL, call)).await.ok(),
    }
}

pub(crate) fn timed_out(part: &'static str) -> StageError {
    StageError::transient("call-timeout", format!("the {part} did not answer within {} s", CALL.as_secs()))
}
