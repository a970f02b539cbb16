//! Compiles the `.proto` files with protox: no system protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "firesteel/v1/types.proto",
        "firesteel/v1/client.proto",
        "firesteel/v1/worker.proto",
        "firesteel/v1/driver.proto",
        "firesteel/v1/masters.proto",
        "firesteel/v1/peers.proto",
        "firesteel/v1/shuffle.proto",
        "firesteel/v1/tasks.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
