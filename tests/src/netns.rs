//! A small network of namespaces: one for each master, one (the hub) for everybody else, so that links can be cut.
//!
//! Needs the superuser and `ip`; nothing outside the namespaces is changed, and they go with the value.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces with addresses `10.77.0.N`, joined by a bridge in the hub.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    nodes: usize,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().map_err(|e| format!("ip: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Lab {
    /// Makes the network; why it cannot be made here.
    pub fn new(nodes: usize) -> Result<Self, String> {
        let prefix = format!("fs{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { prefix, nodes };
        lab.make()?;
        Ok(lab)
    }

    fn make(&self) -> Result<(), String> {
        let hub = self.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add br0 type bridge"))?;
        ip(&format!("-n {hub} addr add {}/24 dev br0", self.hub_address()))?;
        ip(&format!("-n {hub} link set br0 up"))?;
        for node in 0..self.nodes {
            let name = self.node(node);
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {hub} link add v{node} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {hub} link set v{node} master br0 up"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", self.address(node)))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        Ok(())
    }

    pub fn nodes(&self) -> usize {
        self.nodes
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn node(&self, node: usize) -> String {
        format!("{}-{node}", self.prefix)
    }

    pub fn address(&self, node: usize) -> String {
        format!("10.77.0.{}", node + 1)
    }

    pub fn hub_address(&self) -> String {
        "10.77.0.254".to_owned()
    }

    /// `program` inside a node's namespace. `ip` replaces itself by it, so the process id is the program's.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        self.command_within(&self.node(node), program)
    }

    pub fn command_in_hub(&self, program: &Path) -> Command {
        self.command_within(&self.hub(), program)
    }

    fn command_within(&self, namespace: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    /// Runs `work` on a thread of its own, whose sockets are the hub's.
    pub fn inside_hub<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace =
            std::fs::File::open(format!("/run/netns/{}", self.hub())).expect("the hub's namespace");
        std::thread::scope(|scope| {
            let inside = || {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the hub");
                work()
            };
            scope.spawn(inside).join().expect("the work does not panic")
        })
    }

    /// Nothing that `from` sends reaches `to` any more.
    pub fn cut(&self, from: usize, to: usize) {
        ip(&format!("-n {} route add blackhole {}/32", self.node(from), self.address(to))).expect("cut");
    }

    /// Both directions.
    pub fn separate(&self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Nobody reaches the node, nor does it reach anybody.
    pub fn isolate(&self, node: usize) {
        ip(&format!("-n {} link set v{node} down", self.hub())).expect("isolate");
    }

    /// Takes back every cut.
    pub fn heal(&self) {
        for node in 0..self.nodes {
            ip(&format!("-n {} link set v{node} up", self.hub())).expect("heal");
            for other in 0..self.nodes {
                // An error says that this link was not cut.
                let _ = ip(&format!("-n {} route del blackhole {}/32", self.node(node), self.address(other)));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in (0..self.nodes).map(|n| self.node(n)).chain([self.hub()]) {
            // The processes in it have been killed by whoever started them; an error leaves an empty namespace behind.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
