//! Removal of a process's private directory, whatever the process left in it.
//!
//! Nothing is ever followed: every step is relative to an open directory, entries that are not directories are unlinked
//! as they are, and the parent is opened before the payload starts, so that renaming it later redirects nothing.
//! Depth does not matter either: a directory that is not empty is moved up to the top and emptied there, so two open
//! descriptors suffice for a tree of any depth.

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A directory that will be removed, named by its parent's descriptor.
#[derive(Debug)]
pub struct ScratchDir {
    parent: OwnedFd,
    parent_path: PathBuf,
    name: CString,
}

impl ScratchDir {
    /// Pins `path`'s parent, which must exist. `path` itself need not.
    pub fn pin(path: &Path) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names no directory"));
        let parent_path = path.parent().ok_or_else(invalid)?.to_path_buf();
        let name = path.file_name().ok_or_else(invalid)?;
        let name = CString::new(name.as_bytes()).map_err(|_| invalid())?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = rustix::fs::open(&parent_path, flags, Mode::empty())?;
        Ok(Self { parent, parent_path, name })
    }

    /// Removes the directory and all that is in it, then its parent if nothing else is there.
    /// A directory that is already gone is fine.
    pub fn remove(&self) -> io::Result<()> {
        remove_at(self.parent.as_fd(), &self.name)?;
        // The application's directory goes with its last process; ENOTEMPTY says that it was not the last.
        let _ = rustix::fs::rmdir(&self.parent_path);
        Ok(())
    }
}

/// Removes the tree at `path` without following links.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match ScratchDir::pin(path) {
        Ok(dir) => Ok(remove_at(dir.parent.as_fd(), &dir.name)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    let top = open_directory(parent, name)?;
    let mut heap = Heap { top: top.as_fd(), pending: Vec::new(), moved: 0 };
    heap.empty(top.as_fd(), true)?;
    while let Some(directory) = heap.pending.pop() {
        let opened = open_directory(heap.top, &directory)?;
        heap.empty(opened.as_fd(), false)?;
        rustix::fs::unlinkat(heap.top, &directory, AtFlags::REMOVEDIR)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Directories still to be emptied, all of them directly in `top`.
struct Heap<'a> {
    top: BorrowedFd<'a>,
    pending: Vec<CString>,
    moved: u64,
}

impl Heap<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, is_top: bool) -> rustix::io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." || unlink(directory, name)? {
                continue;
            }
            match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) if is_top => self.pending.push(name.to_owned()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.move_up(directory, name)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        loop {
            self.moved += 1;
            let moved = CString::new(format!(".removing-{}", self.moved)).map_err(|_| Errno::INVAL)?;
            match rustix::fs::renameat_with(from, name, self.top, &moved, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    self.pending.push(moved);
                    return Ok(());
                }
                // The payload has used our name: take the next.
                Err(Errno::EXIST) => {}
                // Moving a directory rewrites its `..`, which needs the right to write to it.
                Err(Errno::ACCESS) => {
                    rustix::fs::chmodat(from, name, Mode::RWXU, AtFlags::empty())?;
                    rustix::fs::renameat_with(from, name, self.top, &moved, RenameFlags::NOREPLACE)?;
                    self.pending.push(moved);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// `true` when the entry is gone, `false` when it is a directory.
fn unlink(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a directory and takes the rights needed to empty it: the payload may have dropped them.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        other => other?,
    };
    rustix::fs::fchmod(&opened, Mode::RWXU)?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_out_of_the_tree_are_removed_and_their_targets_stay() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let tree = dir.path().join("app/process");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        symlink(outside.join("precious"), tree.join("file-link")).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        ScratchDir::pin(&tree).unwrap().remove().unwrap();
        assert!(!dir.path().join("app").exists(), "the empty parent goes, too");
        assert_eq!(std::fs::read_to_string(outside.join("precious")).unwrap(), "x");
    }

    #[test]
    fn a_parent_swapped_for_a_link_redirects_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("process")).unwrap();
        let parent = dir.path().join("app");
        std::fs::create_dir_all(parent.join("process/x")).unwrap();
        let pinned = ScratchDir::pin(&parent.join("process")).unwrap();
        std::fs::rename(&parent, dir.path().join("moved")).unwrap();
        symlink(&outside, &parent).unwrap();
        pinned.remove().unwrap();
        assert!(outside.join("process").is_dir());
        assert!(!dir.path().join("moved/process").exists());
    }

    #[test]
    fn depth_beyond_the_path_limit_and_closed_directories_are_no_hiding_place() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir_all(tree.join(".removing-1/kept/kept")).unwrap();
        // 1200 × 5 bytes is more than PATH_MAX: only reachable step by step.
        let mut at = rustix::fs::open(&tree, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1200 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        std::fs::create_dir_all(tree.join("closed/inner/x")).unwrap();
        for path in ["closed/inner", "closed"] {
            rustix::fs::chmod(tree.join(path), Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
        remove_tree(&tree.join("no/parent")).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_only_unlinked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("outside/x")).unwrap();
        symlink(dir.path().join("outside"), dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("outside/x").exists());
        assert!(!dir.path().join("link").exists());
    }
}
