//! Where the members are: what the replicated state says, and before it says anything, what founding or joining has told.

use crate::consensus::Published;
use firesteel_proto::v1::MemberAddresses;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Addresses by Raft id. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct AddressBook {
    entries: Arc<RwLock<BTreeMap<u64, Addresses>>>,
    /// What the state said last: only its changes count, or it would take back what has been learned since.
    recorded: Arc<RwLock<BTreeMap<u64, Addresses>>>,
}

/// `HOST:PORT` each, and the page's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub raft: String,
    pub client: String,
    pub ui_url: String,
}

impl From<MemberAddresses> for Addresses {
    fn from(wire: MemberAddresses) -> Self {
        Self { raft: wire.raft, client: wire.client, ui_url: wire.ui_url }
    }
}

impl From<&Addresses> for MemberAddresses {
    fn from(addresses: &Addresses) -> Self {
        Self {
            raft: addresses.raft.clone(),
            client: addresses.client.clone(),
            ui_url: addresses.ui_url.clone(),
        }
    }
}

impl AddressBook {
    pub fn get(&self, id: u64) -> Option<Addresses> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn all(&self) -> BTreeMap<u64, Addresses> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the state says replaces what was known.
    pub fn learn(&self, members: impl IntoIterator<Item = (u64, Addresses)>) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for (id, addresses) in members {
            if entries.get(&id) != Some(&addresses) {
                entries.insert(id, addresses);
                changed = true;
            }
        }
        changed
    }

    fn forget(&self, removed: impl Fn(u64) -> bool) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let before = entries.len();
        entries.retain(|id, _| !removed(*id));
        entries.len() != before
    }

    /// Takes over what has changed in the state; whether anything was new. Where this master itself is, `me`, it knows best.
    pub fn follow(&self, me: u64, published: &Published) -> bool {
        let others = published.state.members().filter(|m| m.id != me && !m.raft_address.is_empty());
        let members: BTreeMap<u64, Addresses> = others
            .map(|member| {
                let addresses = Addresses {
                    raft: member.raft_address.clone(),
                    client: member.client_address.clone(),
                    ui_url: member.ui_url.clone(),
                };
                (member.id, addresses)
            })
            .collect();
        let mut recorded = self.recorded.write().unwrap_or_else(PoisonError::into_inner);
        let changed: Vec<_> = members
            .iter()
            .filter(|(id, addresses)| recorded.get(*id) != Some(*addresses))
            .map(|(id, addresses)| (*id, addresses.clone()))
            .collect();
        let learned = self.learn(changed);
        *recorded = members;
        self.forget(|id| published.state.is_removed_member(id)) || learned
    }
}

/// The book on disk: a start without it works, but must first be told where the others are.
#[derive(Debug, Clone)]
pub struct AddressFile(PathBuf);

impl AddressFile {
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("raft").join("addresses.json"))
    }

    /// Nothing when there is none, or it cannot be understood: it is only a help.
    pub fn read(&self) -> BTreeMap<u64, Addresses> {
        std::fs::read(&self.0).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub fn write(&self, book: &AddressBook) {
        let write = || -> std::io::Result<()> {
            let temporary = self.0.with_extension("partial");
            std::fs::write(&temporary, serde_json::to_vec(&book.all())?)?;
            std::fs::rename(&temporary, &self.0)
        };
        if let Err(error) = write() {
            tracing::warn!(file = %self.0.display(), %error, "cannot keep the other masters' addresses");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_survives_on_disk_and_damage_is_no_book() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("raft")).unwrap();
        let file = AddressFile::of(dir.path());
        assert!(file.read().is_empty());
        let book = AddressBook::default();
        let entry = Addresses { raft: "h:1".into(), client: "h:2".into(), ui_url: String::new() };
        assert!(book.learn([(7, entry.clone())]));
        assert!(!book.learn([(7, entry.clone())]), "nothing new");
        file.write(&book);
        assert_eq!(file.read(), BTreeMap::from([(7, entry)]));
        std::fs::write(dir.path().join("raft/addresses.json"), "{").unwrap();
        assert!(file.read().is_empty());
    }
}
