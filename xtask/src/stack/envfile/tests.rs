//! What a file means, where it is wrong, what Compose 1 would read differently, and how one setting changes.

use super::*;

fn read(text: &str) -> EnvFile {
    EnvFile::parse(".env.poc", text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn error(bytes: &[u8]) -> String {
    EnvFile::parse(".env.poc", bytes).unwrap_err().to_string()
}

#[test]
fn a_value_is_read_without_its_quotes_comment_and_spaces() {
    for (text, value) in [
        ("A=a b ", "a b"),
        ("A = \"a # b\" # c", "a # b"),
        ("export A='a \"b\"'", "a \"b\""),
        ("A=a#b # c # d", "a#b"),
        ("A=#b", "#b"),
        ("A=", ""),
        ("A=\"\"", ""),
        ("A: a", "a"),
        ("\u{feff}A=a\r\n", "a"),
        ("A=1\nA=a", "a"),
        ("A=\"a\nb\"", "a\nb"),
        (r#"A="a\tb\"\\\$c\z\0101\08""#, "a\tb\"\\$c\\zA\\8"),
        (r"A='a\tb\'\\$c'", r"a\tb'\\$c"),
        ("A=it's a\\", "it's a\\"),
    ] {
        assert_eq!(read(text).get("A"), Some(value), "{text}");
    }
    assert_eq!(read("A.B-c[0]=1\nÄ=2\n1=3").names().collect::<Vec<_>>(), ["1", "A.B-c[0]", "Ä"]);
}

#[test]
fn variables_are_those_of_earlier_lines() {
    for (value, want) in [
        ("$B-${B}$", "b-b$"),
        ("\"$B ${B}\" # $c", "b b"),
        ("'$B'", "$B"),
        ("a$$B$1 $ b", "a$B$1 $ b"),
        ("${N:-${B:-x}y}-${B:-z}}", "by-b}"),
        ("${E-x}${E:-x}${N-$B}", "xb"),
        ("${B:+x}${E:+x}${E+y}${N+z}", "xy"),
        ("${B:?no}${B?no}", "bb"),
        ("${N:-{}", "{"),
    ] {
        assert_eq!(read(&format!("B=b\nE=\nA={value}\n")).get("A"), Some(want), "{value}");
    }
    // Whoever starts Compose must take both away from its environment.
    assert_eq!(read("A=${N:-x}").names().collect::<Vec<_>>(), ["A", "N"]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, said) in [
        ("A=1\nB 2\n", "2:1: expected NAME=VALUE"),
        ("A=1\n\nB", "3:1: expected NAME=VALUE"),
        ("=1", "1:1: expected NAME=VALUE, found no name"),
        ("ä/B=1", "1:2: a name may have only"),
        ("A B=1", "1:2: a name may have no white space"),
        ("A=1\n\0\u{1}", "2:1: there is a NUL byte"),
        ("A=\"\\0000\"", "1:3: a value may have no NUL"),
        ("A=1\nB = \"x\n\n", "2:5: the value begins with \", and there is no \" at its end"),
        ("A=b$c", "1:4: no line above sets c, and a variable of the shell is not read"),
        ("A=\"b${c}\"", "1:3: no line above sets c"),
        ("A=${c d}", "1:3: expected ${NAME}"),
        ("A=${c", "1:3: expected ${NAME}"),
        ("A=${c:?why}", "1:3: the file must set c above: why"),
        ("A=${DOCKER_HOST:-x}", "1:3: DOCKER_HOST belongs to Docker"),
        ("A=1\nB=$A\nA=2", "2:3: A gets another value further down"),
        ("B=${A:-1}\nA=2", "1:3: A gets another value further down"),
    ] {
        let error = error(text.as_bytes());
        assert!(error.starts_with(&format!(".env.poc:{said}")), "{text:?}: {error}");
    }
    assert!(error(b"A=1\nB=\xff").starts_with(".env.poc:2:3: not UTF-8"));
}

#[test]
fn no_file_can_use_up_the_memory_or_the_stack() {
    let doubled: String = (1..40).map(|n| format!("A{n}=$A{m}$A{m}\n", m = n - 1)).collect();
    assert!(error(format!("A0=12345678\n{doubled}").as_bytes()).contains("too long"));
    let nested = format!("A={}{}", "${N:-".repeat(100_000), "}".repeat(100_000));
    assert!(error(nested.as_bytes()).contains("inside one another"));
}

#[test]
fn what_compose_1_reads_differently_is_named_with_its_place() {
    let alike = "# c\nB=b\nexport A = \"a\\n\\\"\\z\" # c\nD=${B}$ $1\nE='$B'\nF=a # c\nB=b\n";
    let env = read(alike);
    assert_eq!(env.differs(), [""; 0]);
    let first = |text: &str| read(&format!("B=b\n{text}\n")).differs().first().cloned().unwrap_or_default();
    for (text, said) in [
        ("A: a", "2:2: write ="),
        ("DOCKER_HOST=tcp://other", "2:1: Compose 1 would take this for its own"),
        ("A=a$B", "2:4: write ${B} instead of $B"),
        ("A=a$$", "2:4: $$: put the value in single quotes"),
        ("A=${B:-a}", "2:3: write the value of B itself"),
        ("A='${B}'", "2:3: Compose 1 has no way"),
        ("A='a\\\\b'", "2:3: two backslashes"),
        ("A=\"a\\\\\"", "2:3: a backslash before the closing quote"),
        ("A=\"\\$\"", "2:3: \\' or \\$ or \\0"),
        ("A=\"a\" C=c", "2:6: begin a new line"),
        ("A=a\t# c", "2:4: put the value in double quotes"),
        ("A=a\u{a0}b", "2:4: unusual white space"),
        ("A=a\rb", "2:4: a carriage return alone"),
        ("A=\"a\r\nb\"", "2:3: a carriage return in a value"),
    ] {
        assert!(first(text).starts_with(&format!(".env.poc:{said}")), "{text:?}: {}", first(text));
    }
}

#[test]
fn the_pieces_of_a_file_are_all_of_it() {
    for text in ["\u{feff}# note\nA='1' # one\n", "A=1\nB 2\nC=3", ""] {
        let written = |piece: &Piece<'_>| match piece {
            Piece::Setting { head, written, .. } => format!("{head}{written}"),
            Piece::Other(text) => (*text).to_owned(),
        };
        assert_eq!(pieces(text).iter().map(written).collect::<String>(), text);
    }
}

#[test]
fn one_setting_changes_and_every_other_byte_stays() {
    let text = "# note\r\nexport A = \"1\" # one\nB=\nB=${A}\n\nC='x\ny'";
    for (key, value, want) in [
        ("A", "2", "# note\r\nexport A = 2 # one\nB=\nB=${A}\n\nC='x\ny'"),
        ("A", "", "# note\r\nexport A = '' # one\nB=\nB=${A}\n\nC='x\ny'"),
        ("B", "a b", "# note\r\nexport A = \"1\" # one\nB=\nB=a b\n\nC='x\ny'"),
        ("C", "$z # ", "# note\r\nexport A = \"1\" # one\nB=\nB=${A}\n\nC='$z # '"),
        ("D", "3", &format!("{text}\nD=3\n")),
    ] {
        assert_eq!(with_value(text, key, value).unwrap(), want);
    }
    for value in [
        "",
        " a",
        "'",
        "\"",
        "it's \"$a\" # b",
        "a\\",
        "a\\'b",
        "\n",
        "a\r\nb",
        "$a",
        "$",
        "ä€😀",
        "#",
        "\u{a0}",
    ] {
        let changed = with_value("A=1 # note\nB=2\n", "A", value).unwrap();
        let env = read(&changed);
        assert_eq!((env.get("A"), env.get("B")), (Some(value), Some("2")), "{changed}");
        assert_eq!(env.differs(), [""; 0], "{changed}");
    }
    // What stands behind a value on its line stays what it is.
    for (text, want) in [
        ("A=\"1\"B=2\n", "A='x'B=2\n"),
        ("A=\"1\"#note\n", "A='x'#note\n"),
        ("A=\"1\"\t# note\n", "A='x'\t# note\n"),
        ("NEXT=1\n", "NEXT=x\n"),
    ] {
        assert_eq!(with_value(text, text.split('=').next().unwrap(), "x").unwrap(), want);
    }
    // Nor does a file become unreadable: here B would get the one or the other A.
    assert!(with_value("A=1\nB=${A}\nA=1\n", "A", "2").is_err());
    assert!(with_value("B=${A:-x}\n", "A", "2").is_err());
    assert!(with_value("", "A", "${a}").is_err());
    assert!(with_value("", "A", "a\0").is_err());
}
