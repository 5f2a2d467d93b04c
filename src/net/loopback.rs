//! A link from this peer to itself: what nodes of one process do together goes the same way as between processes.

use std::sync::Arc;

use tokio::io::duplex;
use tracing::error;

use super::inlet::Inlet;
use super::link::{Link, LinkLimits};
use super::{Carried, Links};
use crate::mesh::PeerId;

/// Puts the link among the others. It ends when they are cleared.
pub(super) fn start(me: PeerId, links: &Links, limits: LinkLimits, max_message: usize, carried: &Arc<dyn Carried>) {
    let link = Link::new(1, limits, max_message);
    carried.up(me, &link);
    links.insert(me, link.clone(), None);
    let mut receiver = carried.receiver(me, None);
    let (ours, theirs) = duplex(PIPE);
    let (writing, carried) = (link.clone(), Arc::clone(carried));
    let reading = async move {
        let inlet = Inlet::default();
        if let Err(error) = inlet.read(theirs, max_message, &link, &mut *receiver, || ()).await {
            error!(%error, "the link to oneself broke");
        }
        link.close();
        carried.down(me, &link);
    };
    // Whoever reads is patient with the greeting for a while only, and it goes out with the first frame.
    let opened = async {
        tokio::spawn(reading);
        Ok(ours)
    };
    tokio::spawn(async move {
        if let Err(error) = writing.write(opened).await {
            error!(%error, "the link to oneself broke");
        }
    });
}

/// Bytes between writer and reader.
const PIPE: usize = 256 << 10;
