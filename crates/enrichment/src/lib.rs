//! Adds looked-up data to messages: key, fetch, apply.

mod park;

pub use park::{Parked, ParkingLot, Placed};
