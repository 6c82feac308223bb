package org.javatuples;

/** Two values, as javatuples has them. */
public final class Pair<A, B> {
    private final A value0;
    private final B value1;

    private Pair(A value0, B value1) {
        this.value0 = value0;
        this.value1 = value1;
    }

    public static <A, B> Pair<A, B> with(A value0, B value1) {
        return new Pair<>(value0, value1);
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof Pair<?, ?> pair && value0.equals(pair.value0) && value1.equals(pair.value1);
    }

    @Override
    public int hashCode() {
        return 31 * value0.hashCode() + value1.hashCode();
    }
}
