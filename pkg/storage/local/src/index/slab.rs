//! Fixed-size records in chunks: growing never copies what is there, and never doubles.

const CHUNK: usize = 1024;

/// Records of one type under small numbers that are reused after removal.
#[derive(Debug, Default)]
pub(crate) struct Slab<T> {
    chunks: Vec<Box<[T]>>,
    free: Vec<u32>,
    /// Numbers below this were handed out at least once.
    used: u32,
}

/// Default values occupy slots not in use.
impl<T: Copy + Default> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let slot = self.free.pop().unwrap_or(self.used);
        if slot == self.used {
            if slot as usize / CHUNK == self.chunks.len() {
                self.chunks.push([T::default()].repeat(CHUNK).into());
            }
            self.used += 1;
        }
        if let Some(place) = self.get_mut(slot) {
            *place = value;
        }
        slot
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        if let Some(place) = self.get_mut(slot) {
            *place = T::default();
            self.free.push(slot);
        }
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.chunks
            .get(slot as usize / CHUNK)?
            .get(slot as usize % CHUNK)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.chunks
            .get_mut(slot as usize / CHUNK)?
            .get_mut(slot as usize % CHUNK)
    }

    /// Slot numbers end here; those that were removed lie below it too.
    pub(crate) const fn end(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_slot_is_handed_out_again_before_the_slab_grows() {
        let mut slab = Slab::<u64>::default();
        let slots: Vec<_> = (0..3000).map(|i| slab.insert(i)).collect();
        assert!(
            slots
                .iter()
                .enumerate()
                .all(|(i, slot)| slab.get(*slot) == Some(&(i as u64)))
        );
        slab.remove(slots[7]);
        assert_eq!(slab.insert(99), slots[7]);
        assert_eq!((slab.get(slots[7]), slab.end()), (Some(&99), 3000));
    }
}
