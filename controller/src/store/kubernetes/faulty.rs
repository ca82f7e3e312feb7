//! Requests that fail on purpose, so that a test can cut the way to the API server at any write.
use hyper::http::{Method, Request};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tower::{BoxError, Layer, Service};

/// Which write fails, and how. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    writes: AtomicUsize,
    cut: Mutex<Option<Cut>>,
}

/// From a write on nothing goes through any more, as if the process had died there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Writes that go through before, counted from the start.
    pub after: usize,
    /// Whether the API server still gets this one, and only its answer is lost.
    pub arrives: bool,
    /// Whether only this one is lost, and what comes after it goes through.
    pub once: bool,
}

impl Faults {
    /// From now on this is so; none: all goes through.
    pub fn set(&self, cut: Option<Cut>) {
        *self.0.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }

    /// Writes to statuses so far, those that failed included.
    pub fn writes(&self) -> usize {
        self.0.writes.load(Ordering::SeqCst)
    }

    /// What is to become of the next request: whether it arrives, and whether the answer does.
    fn judge(&self, is_write: bool) -> (bool, bool) {
        let cut = *self.0.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let number = if is_write { self.0.writes.fetch_add(1, Ordering::SeqCst) } else { self.writes() };
        match cut {
            Some(cut) if is_write && number == cut.after => (cut.arrives, false),
            Some(cut) if number > cut.after && !cut.once => (false, false),
            _ => (true, true),
        }
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: self.clone() }
    }
}

/// A client with [`Faults`].
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S, B> Service<Request<B>> for Faulty<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_write = request.method() != Method::GET && request.uri().path().ends_with("/status");
        let (arrives, answers) = self.faults.judge(is_write);
        let answer = arrives.then(|| self.inner.call(request));
        Box::pin(async move {
            let answer = match answer {
                Some(answer) => Some(answer.await.map_err(Into::into)?),
                None => None,
            };
            answer.filter(|_| answers).ok_or_else(|| "cut on purpose".into())
        })
    }
}
