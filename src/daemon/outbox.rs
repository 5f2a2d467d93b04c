//! What the daemon has to say to one client.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::mesh::delivery::Claimed;
use crate::socket::apart;
use crate::wire::control::{self as wire, Answer, Failure, Reply};

/// What waits to be written to one client. When it is full, who has something to say waits: a forwarder, whose
/// subscription then overflows by its own policy, or the session itself.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Block>,
    budget: Arc<Semaphore>,
}

/// The client reads no more.
#[derive(Debug)]
pub(super) struct Gone;

/// What is to be written.
#[derive(Debug)]
struct Block {
    bytes: Bytes,
    room: OwnedSemaphorePermit,
    /// A message that is taken once it is written. Handed back if it never is.
    message: Option<Claimed>,
}

impl Outbox {
    /// The outbox, and the task that empties it, which ends when all handles of the outbox are gone.
    pub(super) fn open(to: OwnedWriteHalf) -> (Self, AbortOnDropHandle<()>) {
        let (queue, blocks) = mpsc::channel(OUTBOX_BLOCKS);
        let writer = tokio::spawn(write_blocks(blocks, to));
        (Self { queue, budget: Arc::new(Semaphore::new(OUTBOX_BYTES)) }, AbortOnDropHandle::new(writer))
    }

    /// Ends when the client reads no more.
    pub(super) async fn closed(&self) {
        self.queue.closed().await;
    }

    pub(super) async fn reply(&self, id: u64, answer: Result<Reply, Failure>) -> Result<(), Gone> {
        let answer = match answer {
            Ok(reply) => Answer::Reply { id, reply },
            Err(failure) => Answer::Failed { id, failure },
        };
        self.push(&answer).await
    }

    pub(super) async fn push(&self, answer: &Answer) -> Result<(), Gone> {
        self.deliver(answer, None).await
    }

    /// Pushes what delivers a message, and acknowledges that once it is written.
    pub(super) async fn deliver(&self, answer: &Answer, message: Option<Claimed>) -> Result<(), Gone> {
        let block = match apart(answer.payload_len(), || wire::encode(answer)) {
            Ok(block) => block,
            Err(error) => {
                // The limits of messages and records are far lower.
                warn!(%error, "an answer was not sent");
                return Ok(());
            }
        };
        let cost = u32::try_from(block.len().min(OUTBOX_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.budget).acquire_many_owned(cost).await.map_err(|_| Gone)?;
        self.queue.send(Block { bytes: block, room, message }).await.map_err(|_| Gone)
    }
}

/// Writes blocks, small ones many at a time.
async fn write_blocks(mut blocks: mpsc::Receiver<Block>, mut to: OwnedWriteHalf) {
    let (mut batch, mut joined) = (Vec::new(), Vec::with_capacity(JOIN_BYTES));
    let mut taken: Vec<Claimed> = Vec::new();
    while blocks.recv_many(&mut batch, OUTBOX_BLOCKS).await > 0 {
        for Block { bytes, room, message } in batch.drain(..) {
            if joined.len() + bytes.len() > JOIN_BYTES && !flush(&mut joined, &mut to).await {
                return;
            }
            if bytes.len() > JOIN_BYTES {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                apart(bytes.len(), || drop(bytes));
            } else {
                joined.extend_from_slice(&bytes);
            }
            taken.extend(message);
            drop(room);
        }
        if !flush(&mut joined, &mut to).await {
            return;
        }
        taken.drain(..).for_each(|message| message.acknowledge());
    }
    let _ = to.shutdown().await; // It is being dropped anyway.
}

/// False if the client is gone.
async fn flush(joined: &mut Vec<u8>, to: &mut OwnedWriteHalf) -> bool {
    let written = to.write_all(joined).await;
    joined.clear();
    written.is_ok()
}

/// Blocks waiting to be written to one client.
const OUTBOX_BLOCKS: usize = 256;
/// Bytes waiting to be written to one client. A larger block waits until it has the outbox for itself.
const OUTBOX_BYTES: usize = 1024 * 1024;
/// Bytes up to which blocks are joined into one write: beyond that, copying costs more than another call.
const JOIN_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::mesh::{NodeId, PeerId};
    use crate::socket::BlockReader;
    use crate::wire::control::{Delivery, decode};

    fn message(len: usize) -> Answer {
        Answer::Message(Delivery {
            subscription: 0,
            topic: crate::mesh::Topic::new("a").expect("a topic"),
            from: NodeId { peer: PeerId::from_bytes([1; 32]), index: 0 },
            from_name: crate::mesh::NodeName::new("n").expect("a name"),
            seq: 1,
            codec: crate::mesh::Codec::Bytes,
            payload: Bytes::from(vec![0; len]),
            lagged: 0,
            time_us: 0,
            ack: None,
        })
    }

    /// Whether there is room for one more, now that all others had their turns.
    async fn takes(outbox: &Outbox, answer: &Answer) -> bool {
        let mut push = Box::pin(outbox.push(answer));
        for _ in 0..TURNS {
            if let Some(pushed) = (&mut push).now_or_never() {
                return pushed.is_ok();
            }
            tokio::task::yield_now().await;
        }
        false
    }
    const TURNS: usize = 1000;

    #[tokio::test]
    async fn an_outbox_that_is_not_read_fills_up_and_goes_on_when_it_is_read() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, writer) = Outbox::open(to);
        let mut pushed = 0;
        while takes(&outbox, &message(100_000)).await {
            pushed += 1;
            assert!(pushed < 100, "the outbox has no end");
        }
        assert!(pushed >= OUTBOX_BYTES / 200_000, "{pushed}");

        drop(outbox);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        let block = wire::encode(&message(100_000)).unwrap();
        assert_eq!(read.len(), pushed * block.len());
        assert_eq!(decode::<Answer>(&read[4..block.len()]).unwrap(), message(100_000));
    }

    #[tokio::test]
    async fn blocks_of_all_sizes_go_out_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, writer) = Outbox::open(to);
        let sizes = [0, 1, JOIN_BYTES - 1, JOIN_BYTES, 10, 2 * OUTBOX_BYTES, 3, 4];
        let reading = tokio::spawn(async move {
            let (from, _to) = far.into_split();
            let mut reader = BlockReader::new(from, wire::MAX_BLOCK);
            let mut read = Vec::new();
            while let Some(answer) = reader.next::<Answer>().await.unwrap() {
                let Answer::Message(delivery) = answer else { panic!("{answer:?}") };
                read.push(delivery.payload.len());
            }
            read
        });
        for size in sizes {
            outbox.push(&message(size)).await.unwrap();
        }
        drop(outbox);
        writer.await.unwrap();
        assert_eq!(reading.await.unwrap(), sizes);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, _writer) = Outbox::open(to);
        drop(far);
        while outbox.push(&message(10)).await.is_ok() {}
        outbox.queue.closed().await;
    }
}
