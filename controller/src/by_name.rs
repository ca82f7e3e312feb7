//! Objects by name, which snapshots share as a whole until one of them changes: a clone costs nothing, and that two are the
//! same is mostly seen at once.
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    collections::{BTreeMap, btree_map},
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// Objects of one kind by name. Reads like a map; to change it makes a copy first if others have it, too.
#[derive(Debug)]
pub struct ByName<T>(Arc<BTreeMap<String, Arc<T>>>);

impl<T> ByName<T> {
    /// None yet.
    pub fn new() -> Self {
        ByName::default()
    }

    /// Whether it is the same map, or both are empty: then the objects are the same. If not, they may be.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.is_empty() && other.is_empty()
    }
}

impl<T> Deref for ByName<T> {
    type Target = BTreeMap<String, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> DerefMut for ByName<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> Clone for ByName<T> {
    fn clone(&self) -> Self {
        ByName(Arc::clone(&self.0))
    }
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        ByName(Arc::default())
    }
}

impl<T: PartialEq> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || *self.0 == *other.0
    }
}

impl<T> FromIterator<(String, Arc<T>)> for ByName<T> {
    fn from_iter<I: IntoIterator<Item = (String, Arc<T>)>>(objects: I) -> Self {
        ByName(Arc::new(objects.into_iter().collect()))
    }
}

impl<T, const N: usize> From<[(String, Arc<T>); N]> for ByName<T> {
    fn from(objects: [(String, Arc<T>); N]) -> Self {
        objects.into_iter().collect()
    }
}

impl<'a, T> IntoIterator for &'a ByName<T> {
    type Item = (&'a String, &'a Arc<T>);
    type IntoIter = btree_map::Iter<'a, String, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut ByName<T> {
    type Item = (&'a String, &'a mut Arc<T>);
    type IntoIter = btree_map::IterMut<'a, String, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
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
