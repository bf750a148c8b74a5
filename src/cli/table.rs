//! Tables for people.

/// Lays rows out under headings, each column as wide as its widest cell.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| heading.chars().count())
        .collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings: Vec<String> = headings
        .iter()
        .map(|heading| (*heading).to_owned())
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// A column is at least this wide, its gap included …
const WIDTH: usize = 5;
/// … and the gap is this wide.
const GAP: usize = 3;

/// Lines whose cells end in tabs, laid out as docker-machine's tables are: by Go's text/tabwriter
/// (<https://pkg.go.dev/text/tabwriter>). What follows the last tab of a line is no cell of a column; a column goes on
/// for as long as adjacent lines have it.
pub fn aligned(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut out = String::new();
    lay_out(&lines, &mut Vec::new(), &mut out);
    out
}

/// Writes lines of which all have the columns that `widths` are of.
fn lay_out(lines: &[Vec<&str>], widths: &mut Vec<usize>, out: &mut String) {
    let column = widths.len();
    let has = |line: &Vec<&str>| column + 1 < line.len();
    let mut written = 0;
    while let Some(more) = lines[written..].iter().position(has) {
        let start = written + more;
        let end = start + lines[start..].iter().take_while(|line| has(line)).count();
        write_lines(&lines[written..start], widths, out);
        let widest = lines[start..end]
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or_default();
        widths.push(WIDTH.max(widest + GAP));
        lay_out(&lines[start..end], widths, out);
        widths.pop();
        written = end;
    }
    write_lines(&lines[written..], widths, out);
}

fn write_lines(lines: &[Vec<&str>], widths: &[usize], out: &mut String) {
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            let width = widths.get(index).copied().unwrap_or_default();
            out.push_str(&format!("{cell:<width$}"));
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_end_in_tabs_line_up() {
        for (text, expected) in [
            (
                "NAME\tA\tURL\nn1\t-\ttcp://x\n",
                "NAME   A    URL\nn1     -    tcp://x\n",
            ),
            ("A\tB\tC\nlonger\t\t\n", "A        B    C\nlonger        \n"),
            ("alone\nn1\tx\n", "alone\nn1   x\n"),
            // A line without the column ends it.
            ("a\tb\n\nlonger\tb\n", "a    b\n\nlonger   b\n"),
            (
                "a\tb\tc\nlonger\tb\nx\tlonger\tc\n",
                "a        b    c\nlonger   b\nx        longer   c\n",
            ),
            ("ä\tb\nab\tb\n", "ä    b\nab   b\n"),
            ("", ""),
        ] {
            assert_eq!(aligned(text), expected, "{text:?}");
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["n1".to_owned(), "Running".to_owned()],
            vec!["long-name".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "STATE"], &rows),
            "NAME        STATE\nn1          Running\nlong-name   x\n"
        );
    }
}
