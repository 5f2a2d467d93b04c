//! A program that is itself a member of the mesh: values of its own types, and a home where key and identity stay.
//!
//! ```sh
//! cargo run --example embed -- /tmp/thermometer    # again: the same identity, another peer
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::env;
use std::error::Error;
use std::path::PathBuf;

use meshd::{NetworkKey, Node, Target};
use serde::{Deserialize, Serialize};

/// Anything that serde knows can be sent.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Reading {
    sensor: String,
    celsius: f64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let home = env::args().nth(1).map_or_else(|| env::temp_dir().join("meshd-embed"), PathBuf::from);
    // The home of a daemon serves as well: its key, its settings. This key is for a home that has none yet.
    let node = Node::builder("thermometer").home(&home).key(NetworkKey::generate()).start().await?;
    println!("{} of {}", node.id(), node.identity());

    // Another node of the same process, with a name, and so a group, of its own.
    let display = node.sibling("display").await?;
    let mut readings = display.listen("readings/**").await?;

    let reading = Reading { sensor: "attic".to_owned(), celsius: 31.5 };
    let report = node.send("readings/house/attic", &reading).await?;
    println!("sent to {} of {} nodes", report.sent, report.matched);

    let message = readings.next().await.ok_or("the mesh has ended")?;
    assert_eq!(message.decode::<Reading>()?, reading);
    println!("{} says: {reading:?}", message.from_name);

    // `home` may be a daemon's, with more listeners than ours: a target narrows down whom a message is for.
    let options = meshd::SendOptions { target: Target::Node(display.id()), ..meshd::SendOptions::default() };
    let report = node.publish("readings/house/attic", meshd::Codec::Text, "just you".into(), &options).await?;
    println!("sent to {} of {} nodes, as {:?}", report.sent, report.matched, options.target);
    node.shutdown().await;
    Ok(())
}
