//! The wire: generated code, the only place where wire types become domain types, and the channel and server builders.

pub mod channel;
pub mod convert;
pub mod masters;

/// Generated from `proto/firesteel/v1/*.proto`.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("firesteel.v1");
}
