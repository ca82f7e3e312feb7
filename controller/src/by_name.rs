//! Objects by name, which snapshots share but for those that have changed: a clone costs nothing, a change little, and what
//! differs between two snapshots is found without a look at the rest.
use imbl::{
    OrdMap,
    ordmap::{ConsumingIter, DiffItem, Iter},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// Objects of one kind by name. Reads like a map.
#[derive(Debug)]
pub struct ByName<T>(OrdMap<String, Arc<T>>);

impl<T> ByName<T> {
    /// None yet.
    pub fn new() -> Self {
        ByName::default()
    }

    /// Whether it is the same map, or both are empty: then the objects are the same. If not, they may be.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0) || self.is_empty() && other.is_empty()
    }
}

impl<T> ByName<T> {
    /// Takes an object out. Without one of that name the map stays the very same.
    pub fn remove(&mut self, name: &str) -> Option<Arc<T>> {
        if self.contains_key(name) { self.0.remove(name) } else { None }
    }

    /// Leaves the objects for which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&str, &Arc<T>) -> bool) {
        let others = self.iter().filter(|(name, object)| !keep(name, object));
        for name in others.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.0.remove(&name);
        }
    }

    /// Changes objects, each on its own. Those that stay the very same are shared still.
    pub fn change_each(&mut self, mut change: impl FnMut(&str, &mut Arc<T>)) {
        let changed = self.iter().filter_map(|(name, object)| {
            let mut new = Arc::clone(object);
            change(name, &mut new);
            (!Arc::ptr_eq(object, &new)).then(|| (name.clone(), new))
        });
        for (name, object) in changed.collect::<Vec<_>>() {
            self.insert(name, object);
        }
    }
}

impl<T: PartialEq> ByName<T> {
    /// What is different in `after`, by name in their order: the object as it is here and as it is there.
    pub fn changes<'a>(
        &'a self,
        after: &'a Self,
    ) -> impl Iterator<Item = (&'a str, Option<&'a Arc<T>>, Option<&'a Arc<T>>)> {
        self.0.diff(&after.0).map(|item| match item {
            DiffItem::Add(name, after) => (name.as_str(), None, Some(after)),
            DiffItem::Update { old: (name, before), new: (_, after) } => {
                (name.as_str(), Some(before), Some(after))
            }
            DiffItem::Remove(name, before) => (name.as_str(), Some(before), None),
        })
    }
}

/// The names of objects of which something is another in one of two maps, each as it was and as it is.
pub fn changed<'a, A: PartialEq, B: PartialEq>(
    (one, one_now): (&'a ByName<A>, &'a ByName<A>),
    (other, other_now): (&'a ByName<B>, &'a ByName<B>),
) -> BTreeSet<&'a str> {
    let names = one.changes(one_now).map(|(name, ..)| name);
    names.chain(other.changes(other_now).map(|(name, ..)| name)).collect()
}

impl<T> Deref for ByName<T> {
    type Target = OrdMap<String, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> DerefMut for ByName<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<T> Clone for ByName<T> {
    fn clone(&self) -> Self {
        ByName(self.0.clone())
    }
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        ByName(OrdMap::new())
    }
}

impl<T: PartialEq> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> FromIterator<(String, Arc<T>)> for ByName<T> {
    fn from_iter<I: IntoIterator<Item = (String, Arc<T>)>>(objects: I) -> Self {
        ByName(objects.into_iter().collect())
    }
}

impl<T, const N: usize> From<[(String, Arc<T>); N]> for ByName<T> {
    fn from(objects: [(String, Arc<T>); N]) -> Self {
        objects.into_iter().collect()
    }
}

impl<T> IntoIterator for ByName<T> {
    type Item = (String, Arc<T>);
    type IntoIter = ConsumingIter<String, Arc<T>, imbl::shared_ptr::DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a ByName<T> {
    type Item = (&'a String, &'a Arc<T>);
    type IntoIter = Iter<'a, String, Arc<T>, imbl::shared_ptr::DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// As if nothing were shared.
impl<T: Serialize> Serialize for ByName<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, object)| (name, &**object)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByName<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let objects = BTreeMap::<String, T>::deserialize(deserializer)?;
        Ok(objects.into_iter().map(|(name, object)| (name, Arc::new(object))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_one_only() {
        let one = ByName::from([("a".to_owned(), Arc::new(1)), ("b".to_owned(), Arc::new(2))]);
        let mut other = one.clone();
        assert!(one.is_same(&other) && one == other);
        other.insert("b".to_owned(), Arc::new(3));
        let changes: Vec<_> =
            one.changes(&other).map(|(name, a, b)| (name, a.map(|a| **a), b.map(|b| **b))).collect();
        assert_eq!(changes, [("b", Some(2), Some(3))]);
        assert!(!one.is_same(&other) && one != other);
        assert_eq!((*one["b"], *other["b"]), (2, 3));
        assert!(Arc::ptr_eq(&one["a"], &other["a"]), "what has not changed is shared still");
        other.insert("b".to_owned(), Arc::new(2));
        assert!(!one.is_same(&other) && one == other);
        assert!(ByName::<u8>::new().is_same(&ByName::new()));
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(text, r#"{"a":1,"b":2}"#);
        assert_eq!(serde_json::from_str::<ByName<i32>>(&text).unwrap(), one);
    }
}
