//! What the linker collects, and the image that it makes: a container of texts,
//! since nothing here could run machine code.

use crate::calls::JitOptions;
use crate::code::{INVALID_IMAGE, INVALID_PTX, INVALID_VALUE, Outcome};
use crate::ptx::{self, Image};

/// A linker at work.
pub(crate) struct Link {
    pub(crate) options: JitOptions,
    pub(crate) texts: Vec<String>,
    /// The image, once it is complete.
    pub(crate) linked: Option<Vec<u8>>,
}

impl Link {
    /// Takes one text, with or without the zero that ends it.
    pub(crate) fn add_text(&mut self, data: &[u8]) -> Outcome {
        if self.linked.is_some() {
            return Err(INVALID_VALUE);
        }
        let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
        let text = std::str::from_utf8(&data[..end]).map_err(|_| INVALID_PTX)?;
        // What is no PTX at all is no invalid image here: it was said to be PTX.
        ptx::parse(text).map_err(|_| INVALID_PTX)?;
        self.texts.push(text.to_owned());
        Ok(())
    }

    /// The image of all that was added.
    pub(crate) fn complete(&self) -> Outcome<Vec<u8>> {
        if self.texts.is_empty() {
            return Err(INVALID_IMAGE);
        }
        merged(&self.texts)?;
        Ok(Container::of(&self.texts))
    }
}

/// One image of several texts; what two of them define is an error.
fn merged<T: AsRef<str>>(texts: &[T]) -> Outcome<Image> {
    let mut whole = Image::default();
    for text in texts {
        let image = ptx::parse(text.as_ref())?;
        let known = |name: &str| {
            whole.entries.iter().any(|entry| entry.name == name)
                || whole.globals.iter().any(|global| global.name == name)
        };
        if image.entries.iter().any(|entry| known(&entry.name))
            || image.globals.iter().any(|global| known(&global.name))
        {
            return Err(INVALID_PTX);
        }
        whole.entries.extend(image.entries);
        whole.globals.extend(image.globals);
    }
    Ok(whole)
}

/// Texts behind a mark; how many there are; each ends with a zero.
pub(crate) struct Container;

impl Container {
    /// What it begins with; longer than what tells other images apart.
    pub(crate) const MARK: [u8; 8] = *b"\x7fSIMCUDA";

    fn of(texts: &[String]) -> Vec<u8> {
        let mut data = Container::MARK.to_vec();
        data.extend((texts.len() as u32).to_le_bytes());
        for text in texts {
            data.extend(text.as_bytes());
            data.push(0);
        }
        data
    }

    /// The texts in `data`, if it is a container.
    pub(crate) fn texts(data: &[u8]) -> Option<Vec<&[u8]>> {
        let rest = data.strip_prefix(&Container::MARK)?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let mut texts: Vec<&[u8]> = rest.split(|&byte| byte == 0).collect();
        // Behind the last zero.
        texts.pop();
        (texts.len() == u32::from_le_bytes(*count) as usize).then_some(texts)
    }

    /// The image that a container's texts make.
    pub(crate) fn image(texts: &[&str]) -> Outcome<Image> {
        merged(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_went_in() {
        let texts = ["one".to_owned(), String::new(), "two".to_owned()];
        let data = Container::of(&texts);
        assert_eq!(Container::texts(&data), Some(vec![&b"one"[..], b"", b"two"]));
        assert_eq!(Container::texts(&data[1..]), None);
        assert_eq!(Container::texts(&data[..data.len() - 1]), None);
        assert_eq!(Container::texts(b""), None);
    }
}
