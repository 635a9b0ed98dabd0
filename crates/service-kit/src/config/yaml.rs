//! YAML text to a tree with places.

use super::path::Path;
use super::problem::{Place, Problem};
use super::scalar::{Kind, Scalar};
use super::source::{MAX_BYTES, Source};
use super::tree::{Entry, Node, Spot, Value};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use std::collections::HashMap;

/// Deepest nesting that is read. Configurations have about five levels; the parser and this reader recurse.
const MAX_DEPTH: usize = 64;
/// Most nodes that are read, aliases expanded: an alias of aliases must not multiply without bound.
const MAX_NODES: usize = 100_000;

/// Reads the one document of `source`; an empty one is an empty map. Goes on after duplicate keys, so that all of
/// them are in `problems`; ends at the first mistake of syntax.
pub(super) fn parse(source: &Source, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut reader = Reader {
        events: Parser::new_from_str(&source.text),
        source,
        anchors: HashMap::new(),
        nodes: 0,
        duplicates: Vec::new(),
    };
    let result = reader.document();
    problems.append(&mut reader.duplicates);
    result.map_err(|problem| problems.push(*problem)).ok()
}

type Parsed<T> = Result<T, Box<Problem>>;

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    source: &'a Source,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    duplicates: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Parsed<Node> {
        if self.source.text.len() as u64 > MAX_BYTES {
            return Err(self.refuse_at(1, 1, format!("longer than {MAX_BYTES} bytes")));
        }
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(self.refuse(&span, "a second document begins here; one file is one document"));
                }
                Event::StreamStart | Event::Nothing | Event::DocumentStart(_) | Event::DocumentEnd => {}
                event => root = Some(self.node(event, &span, 0)?),
            }
        }
        let empty = || Node { spot: Spot::File { line: 1, column: 1 }, value: Value::Map(Vec::new()) };
        match root {
            None => Ok(empty()),
            Some(Node { value: Value::Scalar(scalar), .. }) if scalar.is_null() => Ok(empty()),
            Some(node) => Ok(node),
        }
    }

    fn next(&mut self) -> Parsed<(Event<'a>, Span)> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(self.refuse_at(1, 1, "the text ends in the middle of a value".to_owned())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Parsed<Node> {
        if depth > MAX_DEPTH {
            return Err(self.refuse(span, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.no_tag(tag.is_some(), span)?;
                let kind = if style == ScalarStyle::Plain { Kind::Plain } else { Kind::Quoted };
                (Value::Scalar(Scalar::new(text.into_owned(), kind)), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.no_tag(tag.is_some(), span)?;
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.no_tag(tag.is_some(), span)?;
                (self.map(depth)?, anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, span, depth),
            _ => return Err(self.refuse(span, "a value is missing here")),
        };
        let node = Node { spot: spot(span), value };
        if anchor > 0 {
            // Kept copies count too: nested anchors keep one another's content.
            self.count(size(&node), span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Parsed<Value> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, &span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Parsed<Value> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Map(entries));
            }
            let key = match self.node(event, &key_span, depth + 1)?.value {
                Value::Scalar(scalar) if scalar.kind == Kind::Plain && scalar.text == "<<" => {
                    return Err(self.refuse(&key_span, "merge keys (<<) are not supported; repeat the keys"));
                }
                Value::Scalar(scalar) => scalar.text,
                _ => return Err(self.refuse(&key_span, "a key must be a word, not a list or a section")),
            };
            let (event, span) = self.next()?;
            let node = self.node(event, &span, depth + 1)?;
            match first_lines.get(&key) {
                Some(line) => {
                    let message =
                        format!("the key {key:?} stands here a second time (first in line {line}); keep one");
                    let duplicate = self.refuse(&key_span, message);
                    self.duplicates.push(*duplicate);
                }
                None => {
                    first_lines.insert(key.clone(), key_span.start.line());
                    entries.push(Entry { key, spot: spot(&key_span), node });
                }
            }
        }
    }

    fn alias(&mut self, anchor: usize, span: &Span, depth: usize) -> Parsed<Node> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(self.refuse(span, "this alias lies within the value that it names"));
        };
        let (node, nodes, levels) = (node.clone(), size(node), height(node));
        if depth + levels > MAX_DEPTH {
            return Err(self.refuse(span, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.count(nodes, span)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, span: &Span) -> Parsed<()> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(self.refuse(span, format!("more than {MAX_NODES} values (aliases expanded)")));
        }
        Ok(())
    }

    fn no_tag(&self, tagged: bool, span: &Span) -> Parsed<()> {
        if tagged {
            return Err(
                self.refuse(span, "tags (!…) are not supported; put a text in quotes instead of !!str")
            );
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Box<Problem> {
        let (line, column) = (error.marker().line(), error.marker().col() + 1);
        let text = self.source.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let indent = &text[..text.len() - text.trim_start().len()];
        let hint = if indent.contains('\t') {
            "; indent with spaces, YAML takes no tabs there"
        } else if text.contains("${") {
            "; within { } and [ ], ${…} needs quotes"
        } else {
            ""
        };
        self.refuse_at(line, column, format!("not valid YAML: {}{hint}", error.info()))
    }

    fn refuse(&self, span: &Span, message: impl Into<String>) -> Box<Problem> {
        self.refuse_at(span.start.line(), span.start.col() + 1, message.into())
    }

    fn refuse_at(&self, line: usize, column: usize, message: String) -> Box<Problem> {
        // Behind a directive with other than ASCII letters the parser counts bytes, not characters.
        let text = self.source.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let column = column.min(text.chars().count() + 1);
        let place = Place::File { name: self.source.name.clone(), line: line.max(1), column };
        Box::new(Problem::new(place, &Path::default(), message))
    }
}

fn spot(span: &Span) -> Spot {
    Spot::File { line: span.start.line(), column: span.start.col() + 1 }
}

/// Nodes in the tree, the root included.
fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
    }
}

/// Levels of the tree, the root included.
fn height(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => entries.iter().map(|entry| height(&entry.node)).max().unwrap_or(0),
    }
}
