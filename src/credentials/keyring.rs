//! The keyring of the session: whatever speaks the Secret Service API of freedesktop.org on the session's bus
//! (GNOME Keyring, KWallet, KeePassXC).
//!
//! Everything is bounded in time, and what goes wrong is told as why there is no keyring: the sealed file serves then.

use std::collections::HashMap;
use std::time::Duration;

use secret_service::{Collection, EncryptionType, Error, SecretService};
use tokio::time::timeout;
use uuid::Uuid;

use crate::secret::Secret;

/// The keyring answers within this time: its daemon may have to be started first.
const DEADLINE: Duration = Duration::from_secs(10);
/// A person unlocks it within this time.
const PERSON: Duration = Duration::from_secs(120);

/// An unlocked keyring, as far as it is this store's.
pub struct Keyring {
    service: SecretService<'static>,
    store: String,
}

/// Why there is no keyring.
pub type Why = String;

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Why> {
    match timeout(deadline, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(why(&error)),
        Err(_) => Err(format!(
            "the keyring did not answer within {} s",
            deadline.as_secs()
        )),
    }
}

fn why(error: &Error) -> Why {
    match error {
        Error::Unavailable => "no keyring answers on a session bus".to_owned(),
        Error::NoResult => "the keyring has no default collection".to_owned(),
        Error::Locked => "the keyring is locked".to_owned(),
        Error::Prompt => "the keyring was not unlocked".to_owned(),
        other => format!("the keyring failed: {other}"),
    }
}

impl Keyring {
    /// The keyring of this session, unlocked; where it is locked, its own prompt asks for its password when there is a
    /// display for it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(store: Uuid) -> Result<Self, Why> {
        // Whatever keeps it from a bus is one and the same for who asked: a variable without a socket, a dead one.
        let service = async {
            let connected = SecretService::connect(EncryptionType::Dh).await;
            connected.map_err(|_| Error::Unavailable)
        };
        let service = within(DEADLINE, service).await?;
        let keyring = Self {
            service,
            store: store.to_string(),
        };
        keyring.unlock().await?;
        Ok(keyring)
    }

    async fn unlock(&self) -> Result<(), Why> {
        let collection = within(DEADLINE, self.service.get_default_collection()).await?;
        if !within(DEADLINE, collection.is_locked()).await? {
            return Ok(());
        }
        let shown = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !shown("DISPLAY") && !shown("WAYLAND_DISPLAY") {
            return Err("the keyring is locked, and there is no display for its prompt".to_owned());
        }
        within(PERSON, collection.unlock()).await?;
        if within(DEADLINE, collection.is_locked()).await? {
            return Err(why(&Error::Prompt));
        }
        Ok(())
    }

    async fn collection(&self) -> Result<Collection<'_>, Error> {
        self.service.get_default_collection().await
    }

    fn about<'a>(&'a self, name: Option<&'a str>) -> HashMap<&'a str, &'a str> {
        let mut about = HashMap::from([("application", "forge"), ("store", &*self.store)]);
        about.extend(name.map(|name| ("name", name)));
        about
    }

    /// The secret of this name.
    ///
    /// # Errors
    /// Why it was not had.
    pub async fn find(&self, name: &str) -> Result<Option<Secret>, Why> {
        let found = within(DEADLINE, async {
            let items = self.service.search_items(self.about(Some(name))).await?;
            match items.unlocked.first() {
                Some(item) => item.get_secret().await.map(Some),
                None => Ok(None),
            }
        });
        found
            .await?
            .map(|bytes| {
                String::from_utf8(bytes)
                    .map(Secret::new)
                    .map_err(|_| format!("what the keyring has of `{name}` is no text"))
            })
            .transpose()
    }

    /// Keeps a secret, in the place of an earlier one of that name.
    ///
    /// # Errors
    /// Why it was not kept.
    pub async fn set(&self, name: &str, secret: &Secret) -> Result<(), Why> {
        within(DEADLINE, async {
            let collection = self.collection().await?;
            let label = format!("forge: {name}");
            let (about, value) = (self.about(Some(name)), secret.expose().as_bytes());
            let item = collection.create_item(&label, about, value, true, "text/plain");
            item.await.map(drop)
        })
        .await
    }

    /// The names of this store's secrets, sorted.
    ///
    /// # Errors
    /// Why they were not had.
    pub async fn names(&self) -> Result<Vec<String>, Why> {
        within(DEADLINE, async {
            let items = self.service.search_items(self.about(None)).await?;
            let mut names = Vec::new();
            for item in items.unlocked.iter().chain(&items.locked) {
                names.extend(item.get_attributes().await?.remove("name"));
            }
            names.sort();
            names.dedup();
            Ok(names)
        })
        .await
    }

    /// Removes the secret of this name; whether there was one.
    ///
    /// # Errors
    /// Why it was not removed.
    pub async fn rm(&self, name: &str) -> Result<bool, Why> {
        within(DEADLINE, async {
            let items = self.service.search_items(self.about(Some(name))).await?;
            let mut any = false;
            for item in items.unlocked.iter().chain(&items.locked) {
                item.delete().await?;
                any = true;
            }
            Ok(any)
        })
        .await
    }
}
