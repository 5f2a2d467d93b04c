//! A chat over a channel. One of the two hands her end to a third, and the talk goes on where it was.
//!
//! ```sh
//! cargo run --example chat
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use meshd::{Channel, ChannelHandle, NetworkKey, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);
    let (alice, bob, carol) = (peer("alice").start().await?, peer("bob").start().await?, peer("carol").start().await?);

    let mut callers = bob.accept("chat").await?;
    let mut desk = carol.listen("desk").await?;
    alice.service("chat")?.wait_for_providers(1, Duration::from_secs(10)).await;
    alice.publisher("desk")?.wait_for_listeners(1, Duration::from_secs(10)).await;

    let hers = alice.open("chat").await?;
    let his = callers.next().await.ok_or("the mesh ended")?;
    hers.send("Hello Bob, this is Alice.").await?;
    hear("bob", &his).await?;
    his.send("Hello Alice! My printer is on fire.").await?;
    hear("alice", &hers).await?;
    hers.send("I will put you through to Carol.").await?;
    his.send("Please hurry.").await?; // Alice does not read this any more

    // The handle is a value like any other. Whoever has it goes on with Bob, who notices nothing.
    alice.send("desk", &hers.into_handle()).await?;
    let handle: ChannelHandle = desk.next().await.ok_or("the mesh ended")?.decode()?;
    let hers = carol.adopt(handle).await?;
    println!("(Carol has taken over, and Alice leaves)");
    alice.shutdown().await;

    hear("bob", &his).await?;
    hear("carol", &hers).await?;
    hers.send("Carol here. Have you tried turning it off?").await?;
    hear("bob", &his).await?;
    his.send("That helped. Bye!").await?;
    his.finish(); // nothing more comes from him
    hear("carol", &hers).await?;
    assert_eq!(hers.receive::<String>().await?, None);
    println!("(Bob has hung up)");
    bob.shutdown().await;
    carol.shutdown().await;
    Ok(())
}

async fn hear(who: &str, talk: &Channel) -> Result<(), Box<dyn Error>> {
    let text: String = talk.receive().await?.ok_or("the other one has hung up")?;
    println!("{who} hears: {text}");
    Ok(())
}
