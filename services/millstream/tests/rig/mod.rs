//! What the campaigns share: the program as a process that is there to be killed, devices that publish with sessions
//! of their own, and readers of what is stored in the end.

#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod devices;
pub(crate) mod installation;
pub(crate) mod proxy;
pub(crate) mod random;
#[path = "../raw_mqtt/mod.rs"]
mod raw_mqtt;
mod rumqttc;
pub(crate) mod stored;
mod strict;
