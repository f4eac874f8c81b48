"""What is kept of rendered texts."""

from labeling import rendering


def test_a_second_look_at_a_short_text_renders_nothing():
    rendering._render_cached.cache_clear()
    assert rendering.render_text("*short*") == rendering.render_text("*short*") == "<p><em>short</em></p>\n"
    assert rendering._render_cached.cache_info().hits == 1


def test_long_texts_do_not_stay_in_memory():
    rendering._render_cached.cache_clear()
    assert "<p>" in rendering.render_text("word " * 1000)
    assert "<pre" in rendering.render_text("x" * 200_000)
    assert rendering._render_cached.cache_info().currsize == 0
