//! Prints what is sent in the mesh of a daemon, or of other programs with the same key file.
//!
//! ```sh
//! MESHD_KEY_FILE=~/.local/share/meshd/default/key cargo run --example listener -- 'greetings/*'
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::env;
use std::error::Error;

use meshd::{NetworkKey, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::read(env::var("MESHD_KEY_FILE")?)?;
    let filter = env::args().nth(1).unwrap_or_else(|| "greetings/*".to_owned());

    let node = Node::builder("listener").key(key).start().await?;
    let mut messages = node.listen(&filter).await?;
    println!("{} listens to {filter}", node.id());

    while let Some(message) = messages.next().await {
        if message.lagged > 0 {
            println!("(too slow: {} messages were dropped)", message.lagged);
        }
        let content = message.text().map_or_else(|| format!("{} bytes", message.payload.len()), str::to_owned);
        println!("{} from {}, number {}: {content}", message.topic, message.from_name, message.seq);
    }
    Ok(())
}
