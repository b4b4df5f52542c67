//! The parts of minijinja's syntax tree, so that a walk over it is short.

use std::ops::Range;

use minijinja::machinery::ast::{CallArg, Expr, Spanned, Stmt};

pub(super) fn span<T>(node: &Spanned<T>) -> Range<usize> {
    let span = node.span();
    span.start_offset as usize..span.end_offset as usize
}

pub(super) fn range(expression: &Expr<'_>) -> Range<usize> {
    let span = expression.span();
    span.start_offset as usize..span.end_offset as usize
}

/// Returns the expressions that a statement itself holds.
pub(super) fn expressions<'s, 'a>(statement: &'s Stmt<'a>) -> Vec<&'s Expr<'a>> {
    match statement {
        Stmt::EmitExpr(part) => vec![&part.expr],
        Stmt::ForLoop(part) => [&part.iter].into_iter().chain(&part.filter_expr).collect(),
        Stmt::IfCond(part) => vec![&part.expr],
        Stmt::WithBlock(part) => part.assignments.iter().map(|(_, value)| value).collect(),
        Stmt::Set(part) => vec![&part.expr],
        Stmt::SetBlock(part) => part.filter.iter().collect(),
        Stmt::AutoEscape(part) => vec![&part.enabled],
        Stmt::FilterBlock(part) => vec![&part.filter],
        Stmt::Macro(part) => part.defaults.iter().collect(),
        Stmt::CallBlock(part) => arguments(&part.call.expr, &part.call.args),
        Stmt::Do(part) => arguments(&part.call.expr, &part.call.args),
        _ => Vec::new(),
    }
}

/// Returns the statements inside a statement.
pub(super) fn bodies<'s, 'a>(statement: &'s Stmt<'a>) -> Vec<&'s [Stmt<'a>]> {
    match statement {
        Stmt::Template(part) => vec![&part.children],
        Stmt::ForLoop(part) => vec![&part.body, &part.else_body],
        Stmt::IfCond(part) => vec![&part.true_body, &part.false_body],
        Stmt::WithBlock(part) => vec![&part.body],
        Stmt::SetBlock(part) => vec![&part.body],
        Stmt::AutoEscape(part) => vec![&part.body],
        Stmt::FilterBlock(part) => vec![&part.body],
        Stmt::Block(part) => vec![&part.body],
        Stmt::Macro(part) => vec![&part.body],
        Stmt::CallBlock(part) => vec![&part.macro_decl.body],
        _ => Vec::new(),
    }
}

/// Returns the expressions inside an expression.
pub(super) fn children<'s, 'a>(expression: &'s Expr<'a>) -> Vec<&'s Expr<'a>> {
    match expression {
        Expr::Var(_) | Expr::Const(_) => Vec::new(),
        Expr::Slice(part) => {
            [&part.expr].into_iter().chain(&part.start).chain(&part.stop).chain(&part.step).collect()
        }
        Expr::UnaryOp(part) => vec![&part.expr],
        Expr::BinOp(part) => vec![&part.left, &part.right],
        Expr::Compare(part) => [&part.expr].into_iter().chain(part.ops.iter().map(|op| &op.expr)).collect(),
        Expr::IfExpr(part) => {
            [&part.test_expr, &part.true_expr].into_iter().chain(&part.false_expr).collect()
        }
        Expr::Filter(part) => part.expr.iter().chain(part.args.iter().map(argument)).collect(),
        Expr::Test(part) => arguments(&part.expr, &part.args),
        Expr::GetAttr(part) => vec![&part.expr],
        Expr::GetItem(part) => vec![&part.expr, &part.subscript_expr],
        Expr::Call(part) => arguments(&part.expr, &part.args),
        Expr::List(part) => part.items.iter().collect(),
        Expr::Tuple(part) => part.items.iter().collect(),
        Expr::Map(part) => part.keys.iter().chain(&part.values).collect(),
    }
}

fn arguments<'s, 'a>(first: &'s Expr<'a>, rest: &'s [CallArg<'a>]) -> Vec<&'s Expr<'a>> {
    [first].into_iter().chain(rest.iter().map(argument)).collect()
}

fn argument<'s, 'a>(argument: &'s CallArg<'a>) -> &'s Expr<'a> {
    match argument {
        CallArg::Pos(value)
        | CallArg::Kwarg(_, value)
        | CallArg::PosSplat(value)
        | CallArg::KwargSplat(value) => value,
    }
}
