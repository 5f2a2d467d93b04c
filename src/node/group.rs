//! One channel to each node that offers a service.

use futures::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt};
use futures::{FutureExt, future, stream};
use serde::Serialize;
use tokio::time::timeout;

use super::{Channel, ChannelError, Node, OpenError, codec};
use crate::mesh::{Codec, Item, NodeId, ServiceName};
use crate::protocol::calls::Callee;

/// Channels to all nodes that offer a service, with one queue of what they send. See [`Node::open_all`].
///
/// Dropping it closes all of them.
pub struct ChannelGroup {
    members: Vec<(NodeId, Channel)>,
    refused: Vec<(NodeId, OpenError)>,
    items: SelectAll<BoxStream<'static, FromMember>>,
}

/// What a member sent: an item, or its end.
type FromMember = (NodeId, Result<Option<Item>, ChannelError>);

impl Node {
    /// Opens a channel to each node that offers the service now. Who refuses is in [`ChannelGroup::refused`].
    ///
    /// # Errors
    /// Nobody offers it, or nobody could be spoken with; then why not with the first.
    ///
    /// # Cancel safety
    /// Dropped before it returns, no channel is open.
    pub async fn open_all(&self, service: &str) -> Result<ChannelGroup, OpenError> {
        let service = ServiceName::new(service)?;
        let patience = self.0.host.protocols.channels.timeout();
        let providers = self.providers(&service, &Callee::Any)?;
        let open = providers.iter().map(|member| {
            let opened = timeout(patience, self.open_to(member, &service, Item::default()));
            opened.map(|opened| (member.id, opened.unwrap_or(Err(OpenError::TimedOut(patience)))))
        });
        let (mut members, mut refused) = (Vec::new(), Vec::new());
        for (id, opened) in future::join_all(open).await {
            match opened {
                Ok(speaker) => members.push((id, Channel::new(self.clone(), speaker, None))),
                Err(error) => refused.push((id, error)),
            }
        }
        if members.is_empty() && !refused.is_empty() {
            return Err(refused.swap_remove(0).1);
        }
        let items = members.iter().map(|(id, channel)| to_its_end(*id, channel.clone())).collect();
        Ok(ChannelGroup { members, refused, items })
    }
}

/// All items of a channel, then its end, once.
fn to_its_end(id: NodeId, channel: Channel) -> BoxStream<'static, FromMember> {
    stream::unfold(Some(channel), move |channel| async move {
        let channel = channel?;
        let item = channel.next().await;
        let goes_on = matches!(item, Ok(Some(_)));
        Some(((id, item), goes_on.then_some(channel)))
    })
    .boxed()
}

impl ChannelGroup {
    /// The channels, and the nodes that they were opened to, in order of their ids.
    #[must_use]
    pub fn members(&self) -> &[(NodeId, Channel)] {
        &self.members
    }

    /// The nodes that offer the service and could not be spoken with.
    #[must_use]
    pub fn refused(&self) -> &[(NodeId, OpenError)] {
        &self.refused
    }

    /// Sends a value, encoded once, to each member, and waits until there is room for it at all of them. Gives those that did
    /// not get it.
    ///
    /// # Errors
    /// The value cannot be encoded; then nobody got it.
    ///
    /// # Cancel safety
    /// Dropped while it waits, those who had room have it.
    pub async fn send_each<T: Serialize + ?Sized>(
        &self,
        value: &T,
    ) -> Result<Vec<(NodeId, ChannelError)>, ChannelError> {
        let payload = codec::to_cbor(value).map_err(|error| ChannelError::Encode(error.to_string()))?;
        let item = Item { codec: Codec::Cbor, payload };
        let sends = self.members.iter().map(|(id, channel)| channel.send_item(item.clone()).map(|sent| (*id, sent)));
        let sent = future::join_all(sends).await;
        Ok(sent.into_iter().filter_map(|(id, sent)| sent.err().map(|error| (id, error))).collect())
    }

    /// Waits for the next item of any member, or for the end of one: `Ok(None)`, or the error that its channel ended with,
    /// once for each. `None` when all have ended.
    ///
    /// # Cancel safety
    /// No item is lost when this is dropped.
    pub async fn next(&mut self) -> Option<(NodeId, Result<Option<Item>, ChannelError>)> {
        self.items.next().await
    }

    /// Waits until the channels to all members are closed. A member that waits for room closes only when its items are taken.
    ///
    /// # Errors
    /// The first error that one ended with.
    pub async fn closed(&self) -> Result<(), ChannelError> {
        let mut ends: FuturesUnordered<_> = self.members.iter().map(|(_, channel)| channel.closed()).collect();
        let mut first = Ok(());
        while let Some(end) = ends.next().await {
            first = first.and(end);
        }
        first
    }

    /// Closes all channels: each member gets all that was sent to it, then the end.
    pub fn close(&self) {
        self.members.iter().for_each(|(_, channel)| channel.close());
    }
}

impl std::fmt::Debug for ChannelGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelGroup").field("members", &self.members).finish_non_exhaustive()
    }
}
