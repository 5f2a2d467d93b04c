//! Sends a greeting every second, and tells what became of each.
//!
//! ```sh
//! MESHD_KEY_FILE=~/.local/share/meshd/default/key cargo run --example sender -- greetings/everyone
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::env;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use meshd::{Codec, NetworkKey, Node, SendOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::read(env::var("MESHD_KEY_FILE")?)?;
    let topic = env::args().nth(1).unwrap_or_else(|| "greetings/everyone".to_owned());

    let node = Node::builder("sender").key(key).start().await?;
    // Resolved once: the fast way to send often on one topic.
    let greetings = node.publisher(&topic)?;

    for number in 1.. {
        if greetings.wait_for_listeners(1, Duration::from_secs(5)).await == 0 {
            println!("nobody listens to {topic} yet");
            continue;
        }
        let text = Bytes::from(format!("greeting {number}"));
        let report = greetings.publish(Codec::Text, text, &SendOptions::default()).await?;
        println!("number {number}: for {} nodes, sent to {}", report.matched, report.sent);
        for (node, reason) in report.dropped {
            println!("  not to {node}: {}", reason.name());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
