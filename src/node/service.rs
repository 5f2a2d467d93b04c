//! Services: what a node offers, and how others call it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{ListenError, Node, codec};
use crate::mesh::engine::LimitError;
use crate::mesh::{Codec, Failure, NodeId, NodeName, PeerId, ServiceInfo, ServiceName, ServiceStats};
use crate::net::KeepAlive;
use crate::protocol::calls::{CallError, CallOptions, CallReply, Callee, Caller};
use crate::protocol::services::{Request, ServeOptions, Server};

/// A service that a node offers. Dropping it ends the service: what runs and waits is still answered.
#[derive(Debug)]
pub struct Serving {
    node: Node,
    service: ServiceName,
    server: Arc<Server>,
    alive: Option<KeepAlive>,
}

/// What calls one service: resolved once, so the fast way to call often. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    node: Node,
    caller: Arc<Caller>,
    options: CallOptions,
}

/// The replies of all nodes that offer a service, as they come: a [`Stream`]. Ends when each has answered, failed or left.
/// Dropping it cancels the calls that are not answered yet.
pub struct Replies(FuturesUnordered<BoxFuture<'static, (NodeId, Result<CallReply, CallError>)>>);

impl Node {
    /// Offers a service: each call runs the handler on the request, which is decoded for it, and is answered with what it
    /// returns. Up to 64 calls run at a time and 1024 wait; further ones are told that the service is busy.
    ///
    /// A handler that fails or panics fails that call alone. A call that is cancelled, or whose caller goes away, drops the
    /// handler's future: it stops at its next `await`. When this returns, this process calls it already, and linked peers
    /// within 50 ms.
    ///
    /// # Errors
    /// The name is not one, the node offers it already or has 10,000 names, or the process has left the mesh.
    pub async fn serve<T, R, E, F, A>(&self, service: &str, handler: F) -> Result<Serving, ListenError>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize,
        E: Into<Failure>,
        F: Fn(T) -> A + Send + Sync + 'static,
        A: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.serve_with(service, ServeOptions::default(), handler).await
    }

    /// Offers a service that takes on as much as the options say. Otherwise like [`Node::serve`].
    ///
    /// # Errors
    /// As for [`Node::serve`].
    pub async fn serve_with<T, R, E, F, A>(
        &self,
        service: &str,
        options: ServeOptions,
        handler: F,
    ) -> Result<Serving, ListenError>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize,
        E: Into<Failure>,
        F: Fn(T) -> A + Send + Sync + 'static,
        A: Future<Output = Result<R, E>> + Send + 'static,
    {
        let typed = move |request: Request| {
            let answer = request.decode::<T>().map(&handler);
            async move {
                let bad = |error: super::DecodeError| Failure::new(Failure::BAD_REQUEST, error.to_string());
                let reply = answer.map_err(bad)?.await.map_err(Into::into)?;
                let payload = codec::to_cbor(&reply).map_err(|why| Failure::new(Failure::BAD_REPLY, why))?;
                Ok((Codec::Cbor, payload))
            }
        };
        self.serve_requests(service, options, typed).await
    }

    /// Offers a service whose handler decodes requests and encodes replies by itself. Otherwise like [`Node::serve`].
    ///
    /// # Errors
    /// As for [`Node::serve`].
    pub async fn serve_requests<F, A>(
        &self,
        service: &str,
        options: ServeOptions,
        handler: F,
    ) -> Result<Serving, ListenError>
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(Codec, Bytes), Failure>> + Send + 'static,
    {
        let service = ServiceName::new(service)?;
        let (host, node) = (&self.0.host, self.0.id.index);
        let handler = Arc::new(move |request| handler(request).boxed());
        // First the handler, then the promise to others that it is there.
        let server = host.protocols.services.insert(node, service.clone(), options, handler);
        let server = server.ok_or_else(|| LimitError::Serves(service.clone()))?;
        let mut serving = Serving { node: self.clone(), service: service.clone(), server, alive: None };
        serving.alive = Some(host.net.serve(node, service).await??);
        Ok(serving)
    }

    /// Calls a service and waits for the reply, 10 s at most: one node that offers it answers, by default the less busy of
    /// two.
    ///
    /// # Errors
    /// [`CallError`] says whether the call ran.
    ///
    /// # Cancel safety
    /// Dropping the future takes the call back: a provider that runs it stops.
    pub async fn call<T: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        service: &str,
        request: &T,
    ) -> Result<R, CallError> {
        self.service(service)?.call(request).await
    }

    /// What calls a service, resolved once.
    ///
    /// # Errors
    /// The name is not one. That nobody offers the service is no error yet.
    pub fn service(&self, name: &str) -> Result<Service, CallError> {
        let mut callers = self.0.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= MAX_CALLERS {
            callers.retain(|_, caller| Arc::strong_count(caller) > 1);
        }
        let caller = if let Some(caller) = callers.get(name) {
            Arc::clone(caller)
        } else {
            let service = ServiceName::new(name)?;
            let host = &self.0.host;
            let routes = host.net.routes().clone();
            let caller = Arc::new(host.protocols.calls.caller(service.clone(), self.0.id, routes));
            callers.insert(service, Arc::clone(&caller));
            caller
        };
        Ok(Service { node: self.clone(), caller, options: CallOptions::default() })
    }

    /// All services that can be reached, by name and node, with what each has done: asked of its peer, which has `patience` to
    /// answer.
    pub async fn services(&self, patience: Duration) -> Vec<ServiceInfo> {
        let nodes = self.nodes();
        let mut peers: Vec<PeerId> =
            nodes.iter().filter(|node| !node.services.is_empty()).map(|node| node.id.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let calls = &self.0.host.protocols.calls;
        let ask = |peer| async move { (peer, calls.stats(peer, patience).await.unwrap_or_default()) };
        let mut stats: HashMap<(NodeId, ServiceName), ServiceStats> = HashMap::new();
        for (peer, all) in futures::future::join_all(peers.into_iter().map(ask)).await {
            stats.extend(all.into_iter().map(|one| ((NodeId { peer, index: one.node }, one.service.clone()), one)));
        }
        let mut services = Vec::new();
        for node in nodes {
            for service in node.services {
                let stats = stats.remove(&(node.id, service.clone()));
                let (name, host) = (node.name.clone(), node.host.clone());
                services.push(ServiceInfo { service, node: node.id, name, host, stats });
            }
        }
        services.sort_unstable_by(|a, b| (&a.service, &a.name, a.node).cmp(&(&b.service, &b.name, b.node)));
        services
    }
}

impl Serving {
    /// What it is called by.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> ServiceStats {
        self.server.stats()
    }

    /// Ends the service, and waits until all that ran and waited is answered.
    ///
    /// # Cancel safety
    /// Dropping the future ends the service as well; what runs is still answered.
    pub async fn drain(self) {
        let server = Arc::clone(&self.server);
        drop(self);
        server.drained().await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.alive = None; // others call it no more; who does so still is told that it is not there
        // Locks for no longer than it takes to remove an entry.
        self.node.0.host.protocols.services.remove(self.node.0.id.index, &self.service);
    }
}

impl Service {
    /// The service.
    #[must_use]
    pub fn name(&self) -> &ServiceName {
        self.caller.service()
    }

    /// How its calls are made from now on, through this handle.
    #[must_use]
    pub fn with(self, options: CallOptions) -> Self {
        Self { options, ..self }
    }

    /// Calls, and decodes the reply: see [`Node::call`].
    ///
    /// # Errors
    /// [`CallError`] says whether the call ran.
    ///
    /// # Cancel safety
    /// Dropping the future takes the call back.
    pub async fn call<T: Serialize + ?Sized, R: DeserializeOwned>(&self, request: &T) -> Result<R, CallError> {
        let payload = codec::to_cbor(request).map_err(CallError::Encode)?;
        let reply = self.call_bytes(Codec::Cbor, payload).await?;
        decoded(&reply)
    }

    /// Calls with a payload that is encoded already, and gives the reply as it came.
    ///
    /// # Errors
    /// [`CallError`] says whether the call ran.
    ///
    /// # Cancel safety
    /// Dropping the future takes the call back.
    pub async fn call_bytes(&self, codec: Codec, payload: impl Into<Bytes>) -> Result<CallReply, CallError> {
        self.node.0.host.protocols.calls.call(&self.caller, codec, &payload.into(), &self.options).await
    }

    /// Calls every node that offers the service, as of now. The replies come in the order in which they arrive; the stream
    /// ends when all have answered, failed or left. Each has the whole timeout.
    ///
    /// # Errors
    /// The request cannot be encoded, or nobody offers the service.
    pub fn call_all<T: Serialize + ?Sized>(&self, request: &T) -> Result<Replies, CallError> {
        self.call_all_bytes(Codec::Cbor, codec::to_cbor(request).map_err(CallError::Encode)?)
    }

    /// Calls every node that offers the service with a payload that is encoded already: see [`Service::call_all`].
    ///
    /// # Errors
    /// Nobody offers the service.
    pub fn call_all_bytes(&self, codec: Codec, payload: impl Into<Bytes>) -> Result<Replies, CallError> {
        let payload = payload.into();
        let providers = self.providers();
        if providers.is_empty() {
            return Err(CallError::NoProvider(self.name().clone()));
        }
        let one = |(node, _)| {
            let one = self.clone().with(CallOptions { callee: Callee::Node(node), ..self.options.clone() });
            let payload = payload.clone();
            async move { (node, one.call_bytes(codec, payload).await) }.boxed()
        };
        Ok(Replies(providers.into_iter().map(one).collect()))
    }

    /// The nodes that offer the service now, with their names.
    #[must_use]
    pub fn providers(&self) -> Vec<(NodeId, NodeName)> {
        self.node.0.host.protocols.calls.providers(&self.caller)
    }

    /// Whether a node offers the service now.
    #[must_use]
    pub fn has_providers(&self) -> bool {
        !self.providers().is_empty()
    }

    /// Waits until at least `count` nodes offer the service. Gives those that do, when that is so or when time is up.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_for_providers(&self, count: usize, patience: Duration) -> Vec<(NodeId, NodeName)> {
        let mut routes = self.caller.routes().clone();
        let enough = async { while self.providers().len() < count && routes.changed().await.is_ok() {} };
        let _ = timeout(patience, enough).await; // either way, who is there is the answer
        self.providers()
    }
}

impl Replies {
    /// The next reply, decoded, and who gave it. `None` when all have answered, failed or left.
    ///
    /// # Cancel safety
    /// No reply is lost.
    pub async fn next_as<R: DeserializeOwned>(&mut self) -> Option<(NodeId, Result<R, CallError>)> {
        let (node, reply) = self.0.next().await?;
        Some((node, reply.and_then(|reply| decoded(&reply))))
    }
}

impl Stream for Replies {
    type Item = (NodeId, Result<CallReply, CallError>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies").field("outstanding", &self.0.len()).finish()
    }
}

fn decoded<R: DeserializeOwned>(reply: &CallReply) -> Result<R, CallError> {
    reply.decode().map_err(|error| CallError::Decode { node: reply.node, why: error.to_string() })
}

/// Services whose providers a node remembers. Beyond, those without a [`Service`] are resolved anew.
const MAX_CALLERS: usize = 1 << 14;
