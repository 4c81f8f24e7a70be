//! The size of a tree in which a directory may occur any number of times.

/// The size of a directory with everything below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// The files, symlinks and directories, itself included.
    pub(crate) entries: u64,
    /// The bytes of all files.
    pub(crate) bytes: u64,
    /// The most directories on a path, itself included.
    pub(crate) depth: usize,
}

/// A directory by itself.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// The number of files and symlinks.
    pub(crate) entries: u64,
    /// The bytes of the files.
    pub(crate) bytes: u64,
    /// The numbers of the directories in it, one for each name.
    pub(crate) children: Vec<usize>,
}

/// Returns the size of the tree below the first node, in time linear in the number of names; `None` if a directory
/// contains itself. Sizes saturate.
pub(crate) fn size(nodes: &[Node]) -> Option<Size> {
    let mut sizes = vec![Size::default(); nodes.len()];
    for number in top_down(nodes)?.into_iter().rev() {
        let node = nodes.get(number)?;
        let mut size = Size {
            entries: node.entries.saturating_add(1),
            bytes: node.bytes,
            depth: 0,
        };
        for child in &node.children {
            let child = sizes.get(*child)?;
            size.entries = size.entries.saturating_add(child.entries);
            size.bytes = size.bytes.saturating_add(child.bytes);
            size.depth = size.depth.max(child.depth);
        }
        size.depth += 1;
        *sizes.get_mut(number)? = size;
    }
    sizes.first().copied()
}

/// Returns the numbers of all nodes, each after all that contain it.
fn top_down(nodes: &[Node]) -> Option<Vec<usize>> {
    let mut parents = vec![0_usize; nodes.len()];
    for child in nodes.iter().flat_map(|node| &node.children) {
        *parents.get_mut(*child)? += 1;
    }
    if parents.first() != Some(&0) {
        return None;
    }
    let mut order = Vec::with_capacity(nodes.len());
    order.push(0);
    let mut next = 0;
    while let Some(number) = order.get(next).copied() {
        next += 1;
        for child in &nodes.get(number)?.children {
            let left = parents.get_mut(*child)?;
            *left -= 1;
            if *left == 0 {
                order.push(*child);
            }
        }
    }
    (order.len() == nodes.len()).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(entries: u64, children: &[usize]) -> Node {
        Node {
            entries,
            bytes: 10 * entries,
            children: children.to_vec(),
        }
    }

    #[test]
    fn directories_count_as_often_as_they_occur() {
        let nodes = [node(1, &[1, 2, 2]), node(2, &[2]), node(4, &[])];
        let expected = Size {
            entries: (1 + 1) + (1 + 2) + 3 * (1 + 4),
            bytes: 10 * (1 + 2 + 3 * 4),
            depth: 3,
        };
        assert_eq!(size(&nodes), Some(expected));
    }

    #[test]
    fn a_directory_that_contains_itself_has_no_size() {
        assert_eq!(size(&[node(1, &[0])]), None);
        assert_eq!(size(&[node(1, &[1]), node(1, &[2]), node(1, &[1])]), None);
    }

    #[test]
    fn sizes_saturate() {
        let count = 100;
        let mut nodes: Vec<_> = (1..count).map(|next| node(0, &[next, next])).collect();
        nodes.push(node(1, &[]));
        let size = size(&nodes).unwrap();
        assert_eq!(
            (size.entries, size.bytes, size.depth),
            (u64::MAX, u64::MAX, count)
        );
    }
}
