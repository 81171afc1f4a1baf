//! Reading files: which one, and every way in which it can be wrong.

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8], mode: u32) -> PathBuf {
        let path = self.0.path().join("cluster.toml");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

fn message(path: &Path, trust: Trust) -> String {
    SiteConfig::load(Some(path), trust).unwrap_err().to_string()
}

#[test]
fn the_caller_goes_before_the_variable_and_it_before_the_default() {
    let variable = || Some(OsString::from("/v"));
    assert_eq!(choose(Some(Path::new("/e")), variable()), ("/e".into(), Origin::Explicit));
    assert_eq!(choose(None, variable()), ("/v".into(), Origin::Variable));
    assert_eq!(choose(None, None), (DEFAULT_PATH.into(), Origin::Default));
}

#[test]
fn a_good_file_is_read() {
    let folder = Folder::new();
    let path = folder.file(b"[scheduler]\nquantum_ms = 7\nidle_us = 70\n", 0o644);
    for trust in [Trust::User, Trust::Privileged] {
        assert_eq!(SiteConfig::load(Some(&path), trust).unwrap().scheduler.quantum_ms.get(), 7);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = Folder::new();
    let text = message(&folder.0.path().join("x.toml"), Trust::User);
    assert!(text.contains("x.toml cannot be read: No such file"), "{text}");
    assert!(text.contains("plugstack.conf"), "{text}");
    for (trust, remedy) in
        [(Trust::User, "ACB_CONF=PATH"), (Trust::Privileged, "conf=PATH in plug")]
    {
        let text = LoadError::NoDefault { path: DEFAULT_PATH.into(), trust }.to_string();
        assert!(text.contains("/etc/acb/cluster.toml") && text.contains(remedy), "{text}");
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = Folder::new();
    let pipe = folder.0.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), folder.0.path(), Path::new("/dev/zero")] {
        let text = message(path, Trust::User);
        assert!(text.contains("not a regular file"), "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_have_their_place() {
    let folder = Folder::new();
    let text = message(&folder.file(b"# \xc3\xa9\nx = \"\xff\"\n", 0o644), Trust::User);
    assert!(text.ends_with("cluster.toml:2:6: not UTF-8 text"), "{text}");
    let text = message(&folder.file(&vec![b'#'; 2 << 20], 0o644), Trust::User);
    assert!(text.contains("larger than 1 MiB"), "{text}");
}

#[test]
fn what_others_can_write_is_not_trusted_by_daemons() {
    let folder = Folder::new();
    let path = folder.file(b"", 0o666);
    SiteConfig::load(Some(&path), Trust::User).unwrap();
    let text = message(&path, Trust::Privileged);
    assert!(text.contains("everybody can write it: chown root and chmod go-w it"), "{text}");
}

#[test]
fn a_spec_error_names_the_file_and_not_the_key() {
    let folder = Folder::new();
    let path = folder.file(b"job_id = 1\nkey = \"abcabc\"\n", 0o600);
    let text = JobSpec::load(&path).unwrap_err().to_string();
    assert!(text.contains("cluster.toml:2:7: the key is not 64 hexadecimal digits"), "{text}");
    assert!(!text.contains("abcabc"), "{text}");
}

#[test]
fn invalid_files_name_themselves() {
    let folder = Folder::new();
    let path = folder.file(b"[hosts]\n", 0o644);
    for text in [message(&path, Trust::User), Multinode::load(&path).unwrap_err().to_string()] {
        assert!(text.contains(&format!("{}:1:2", path.display())), "{text}");
    }
}
